from __future__ import annotations

from kdfed.models import build_model, state_of
from kdfed.settings import ModelSettings


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


def test_mlp_takes_features_and_a_list_of_widths() -> None:
    model = build_model(settings("mlp", hidden=(5, 6)), (4,), 3, seed=0)
    assert [tuple(value.shape) for value in state_of(model).values()] == [
        (5, 4),
        (5,),
        (6, 5),
        (6,),
        (3, 6),
        (3,),
    ]


def test_mlp_without_hidden_layers_is_linear() -> None:
    model = build_model(settings("mlp", hidden=()), (4,), 3, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 15
