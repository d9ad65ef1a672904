from __future__ import annotations

from kdfed.models import buffer_keys, build_model
from kdfed.settings import ModelSettings


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


def test_our_resnets_hold_no_batch_statistics() -> None:
    assert buffer_keys(build_model(settings("resnet8"), (3, 32, 32), 10, seed=0)) == frozenset()
