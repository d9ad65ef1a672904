from __future__ import annotations

from kdfed.models import build_model
from kdfed.settings import ModelSettings


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


def test_resnet18_is_the_usual_one_but_for_stem_and_norms() -> None:
    """torchvision's ResNet-18 for 10 classes has 11,181,642 parameters (norms have the same number);
    its 7x7 stem has 64*3*49 = 9408, ours 64*3*9 = 1728.
    """
    model = build_model(settings("resnet18"), (3, 32, 32), 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_181_642 - 9408 + 1728
