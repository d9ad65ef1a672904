"""The mean of several rounds' models: a worked number, and the slow twin that keeps every model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdfed.errors import ConfigError
from kdfed.model_average import ModelAverage, RoundsMean
from kdfed.models import State


def some_rounds(count: int) -> list[State]:
    draw = torch.Generator().manual_seed(0)
    return [
        {"weight": torch.randn(3, 2, generator=draw), "bn.running_var": torch.rand(2), "n": torch.tensor(i)}
        for i in range(count)
    ]


def delivered(settings: ModelAverage, models: list[State]) -> list[State]:
    mean = RoundsMean(settings)
    return [mean.after(number, state) for number, state in enumerate(models, start=1)]


def test_a_worked_number() -> None:
    """Of 1, 2, 6, 7, the last two at most, from round 2 on: 1; 2; (2 + 6) / 2 = 4; (6 + 7) / 2 = 6.5."""
    models = [{"x": torch.tensor([value])} for value in (1.0, 2.0, 6.0, 7.0)]
    found = delivered(ModelAverage(last=2, from_=2), models)
    assert [float(state["x"]) for state in found] == [1.0, 2.0, 4.0, 6.5]


@pytest.mark.parametrize(("last", "first"), [(3, 1), (3, 4), ("all", 1), ("all", 5), (100, 2)])
def test_it_is_the_mean_of_the_models_that_a_slow_twin_keeps(last: int, first: int) -> None:
    models = some_rounds(9)
    for number, state in enumerate(delivered(ModelAverage(last=last, from_=first), models), start=1):
        kept = models[first - 1 : number]
        kept = kept if last == "all" else kept[-last:]
        for key, value in state.items():
            assert value.dtype == models[0][key].dtype
            if number < first:
                assert value is models[number - 1][key]
                continue
            twin = np.mean([one[key].double().numpy() for one in kept], axis=0)
            twin = np.rint(twin) if key == "n" else twin
            np.testing.assert_allclose(value.numpy(), twin, rtol=1e-6)


def test_a_window_that_holds_every_round_is_all_of_them_to_the_bit() -> None:
    models = some_rounds(6)
    wide, whole = (delivered(ModelAverage(last=last), models) for last in (6, "all"))
    assert all(torch.equal(a[key], b[key]) for a, b in zip(wide, whole, strict=True) for key in a)


def test_models_that_do_not_change_are_their_mean_and_none_is_changed() -> None:
    (model,) = some_rounds(1)
    before = {key: value.clone() for key, value in model.items()}
    for state in delivered(ModelAverage(last=2), [model] * 5):
        assert all(torch.equal(state[key], before[key]) for key in before)
    assert all(torch.equal(model[key], before[key]) for key in before)


@pytest.mark.parametrize("last", [0, 1, "some"])
def test_a_mean_of_fewer_than_two_is_refused(last: object) -> None:
    with pytest.raises(ValidationError):
        ModelAverage.model_validate({"last": last})


def test_a_first_round_that_never_comes_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match=r"server.average.from: expected a round up to the last, 3 "):
        tiny(**{"server.average": {"from": 4}})
    assert tiny(**{"server.average": {"from": 3}}).server.average == ModelAverage(from_=3)
