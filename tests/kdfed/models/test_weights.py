from __future__ import annotations

import pytest
import torch

from kdfed.errors import KdfedError
from kdfed.models import buffer_keys, build_model, load_state, state_of
from kdfed.settings import ModelSettings

IMAGES = (1, 28, 28)


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


def test_a_state_is_a_copy_that_loads_back() -> None:
    first = build_model(settings("cnn", norm="batch"), IMAGES, 10, seed=0)
    second = build_model(settings("cnn", norm="batch"), IMAGES, 10, seed=1)
    state = state_of(first)
    assert list(state) == list(first.state_dict())
    load_state(second, state)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert all(torch.equal(state[key], value) for key, value in state_of(second).items())
    assert not any(value.requires_grad for value in state.values())


def test_a_state_of_another_model_is_refused_by_name() -> None:
    model = build_model(settings("mlp", hidden=(4,)), (3,), 2, seed=0)
    state = state_of(model)
    state["1.weight"] = torch.zeros(4, 5)
    state["9.bias"] = state.pop("3.bias")
    with pytest.raises(
        KdfedError, match=r"missing 3.bias; unexpected 9.bias; 1.weight has shape \(4, 5\), exp"
    ):
        load_state(model, state)


def test_buffers_are_what_batch_norm_counts() -> None:
    model = build_model(settings("cnn", norm="batch"), IMAGES, 10, seed=0)
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert buffer_keys(model) == {f"norm{layer}.{name}" for layer in (1, 2) for name in names}
