"""The weighted mean, against one in fractions that never rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdfed.arrays import Spec
from kdfed.averaging import WeightedMean, average_states
from kdfed.errors import KdfedError
from kdfed.metrics import LABEL_COUNTS, LOCAL_STEPS, NUM_EXAMPLES, TRAIN_LOSS
from kdfed.models import State, build_model, state_of
from kdfed.settings import ModelSettings

RAGGED: Spec = {
    "matrix": ((2, 3), "float32"),
    "scalar": ((), "float64"),
    "nothing": ((0, 4), "float32"),
    "counter": ((), "int64"),
    "half": ((3,), "float16"),
    "flags": ((2,), "bool"),
}
EPSILON = {torch.float64: 2**-52, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def some_models(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        {key: (3 * generator.standard_normal(shape)).astype(dtype) for key, (shape, dtype) in RAGGED.items()}
        for _ in range(count)
    ]


def added(spec: Spec, models: Sequence[dict[str, np.ndarray]], weights: Sequence[float]) -> WeightedMean:
    mean = WeightedMean(spec)
    for model, weight in zip(models, weights, strict=True):
        for key, values in model.items():
            mean.part(key)[:] = values.reshape(-1)
        mean.add(weight)
    return mean


def of_numbers(values: Sequence[float], weights: Sequence[float]) -> float:
    models = [{"x": np.array([value])} for value in values]
    return float(added({"x": ((1,), "float64")}, models, weights).arrays()["x"][0])


def exact_mean(values: Sequence[float], weights: Sequence[float]) -> Fraction:
    """The slow twin."""
    pairs = [(Fraction(value), Fraction(weight)) for value, weight in zip(values, weights, strict=True)]
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


NUMBERS = st.floats(-1e6, 1e6)
PAIRS = st.lists(st.tuples(NUMBERS, st.integers(0, 1000)), min_size=1, max_size=12).filter(
    lambda pairs: any(weight for _, weight in pairs)
)


def some_states(count: int) -> list[State]:
    states = [
        state_of(build_model(ModelSettings(options={"norm": "batch"}), (1, 8, 8), 3, k)) for k in range(count)
    ]
    for k, state in enumerate(states):
        state["norm1.num_batches_tracked"] = torch.tensor(10 * k + 1)
    return states


def test_a_worked_average() -> None:
    """(1 * 2 + 3 * 6) / 4 = 5; the counter (1 * 1 + 3 * 4) / 4 = 3.25 is rounded to 3."""
    states = [
        {"w": torch.tensor([2.0], dtype=torch.float16), "n": torch.tensor(1)},
        {"w": torch.tensor([6.0], dtype=torch.float16), "n": torch.tensor(4)},
    ]
    average = average_states(states, [1, 3])
    assert (average["w"].dtype, average["n"].dtype) == (torch.float16, torch.int64)
    assert (average["w"].item(), average["n"].item()) == (5.0, 3)


def test_an_average_agrees_with_the_slow_twin() -> None:
    states, weights = some_states(3), [5.0, 0.0, 2.0]
    average = average_states(states, weights)
    for key, value in average.items():
        for place, number in enumerate(value.flatten().tolist()):
            terms = [w * state[key].flatten()[place].item() for w, state in zip(weights, states, strict=True)]
            assert number == pytest.approx(
                sum(terms) / 7, rel=1e-5, abs=0.5 if key.endswith("tracked") else 1e-7
            )


def test_the_average_of_identical_states_is_the_identity() -> None:
    state = some_states(1)[0]
    average = average_states([state] * 7, [0.1, 3, 1e-9, 1e9, 7, 1 / 3, 2])
    assert list(average) == list(state)
    assert all(torch.equal(average[key], value) for key, value in state.items())


def test_the_scale_of_the_weights_does_not_matter() -> None:
    states = some_states(2)
    first, second = average_states(states, [1, 3]), average_states(states, [2, 6])
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [2, -1], [math.nan, 1], [math.inf, 1]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(KdfedError, match="weights of at least 0 with a sum above 0"):
        average_states(some_states(2), weights)


def test_states_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(KdfedError, match="one weight per state, got 2 states and 1 weights"):
        average_states(some_states(2), [1])
    with pytest.raises(KdfedError, match="got 0 states"):
        average_states([], [])
    first, second = some_states(2)
    second["conv1.weight"] = second["conv1.weight"][:2]
    with pytest.raises(KdfedError, match=r"state 1 differs in conv1\.weight"):
        average_states([first, second], [1, 1])


def test_states_of_every_dtype_and_shape_agree_with_fractions() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "float64": (torch.float64, (2, 3)),
        "float32": (torch.float32, ()),
        "float16": (torch.float16, (5,)),
        "bfloat16": (torch.bfloat16, (4,)),
        "nothing": (torch.float32, (3, 0)),
        "int64": (torch.int64, (6,)),
        "uint8": (torch.uint8, ()),
        "bool": (torch.bool, (6,)),
    }
    weights = [3, 0, 5, 1]
    states = [
        {
            key: (9 * torch.rand(shape, generator=generator)).to(dtype)
            for key, (dtype, shape) in shapes.items()
        }
        for _ in weights
    ]
    for state in states:
        state["bool"] = torch.rand(6, generator=generator) < 0.5
    average = average_states(states, weights)
    assert list(average) == list(shapes)
    for key, (dtype, shape) in shapes.items():
        assert (average[key].dtype, tuple(average[key].shape)) == (dtype, shape)
        for place, number in enumerate(average[key].flatten().tolist()):
            exact = exact_mean([state[key].flatten()[place].item() for state in states], weights)
            if dtype.is_floating_point:
                assert number == pytest.approx(float(exact), rel=EPSILON[dtype])
            else:
                assert number == round(exact), "half to even, as Python's"


# ----------------------------------------------------------------------------- WeightedMean


@given(PAIRS)
def test_a_mean_agrees_with_fractions(pairs: list[tuple[float, int]]) -> None:
    values, weights = zip(*pairs, strict=True)
    size = float(exact_mean(np.abs(values).tolist(), weights))
    assert of_numbers(values, weights) == pytest.approx(
        float(exact_mean(values, weights)), abs=1e-14 * size, rel=0
    )


@given(PAIRS.flatmap(lambda pairs: st.tuples(st.just(pairs), st.permutations(pairs))))
def test_another_order_of_adding_changes_the_last_bits_only(
    pairs: tuple[list[tuple[float, int]], list[tuple[float, int]]],
) -> None:
    one, other = (of_numbers(*zip(*order, strict=True)) for order in pairs)
    size = max(abs(value) for value, _ in pairs[0])
    assert one == pytest.approx(other, abs=1e-14 * size, rel=0)


def test_the_order_of_adding_is_the_order_of_the_sum_to_the_bit() -> None:
    """(0.1 + 0.2) + 0.3 is 0.6000000000000001 and (0.3 + 0.2) + 0.1 is 0.6: whoever adds keeps an order."""
    assert of_numbers([0.1, 0.2, 0.3], [1, 1, 1]) == 0.6000000000000001 / 3
    assert of_numbers([0.3, 0.2, 0.1], [1, 1, 1]) == 0.6 / 3


def test_every_array_of_a_ragged_model_gets_its_own_mean_back_in_its_shape() -> None:
    models, weights = some_models(4), [2.0, 0.0, 7.0, 0.5]
    arrays = added(RAGGED, models, weights).arrays()
    assert {key: (values.shape, values.dtype) for key, values in arrays.items()} == {
        key: (shape, np.float64) for key, (shape, _) in RAGGED.items()
    }
    for key, values in arrays.items():
        for place in np.ndindex(values.shape):
            exact = exact_mean([float(model[key][place]) for model in models], weights)
            expected = round(exact) if key in ("counter", "flags") else float(exact)
            assert values[place] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_sums_that_were_made_elsewhere_count_like_their_models_one_by_one(at_once: int) -> None:
    models, weights = some_models(5), [2.0, 1.0, 7.0, 30.0, 4.0]
    one_by_one, summed = added(RAGGED, models, weights), WeightedMean(RAGGED)
    for start in range(0, 5, at_once):
        part = range(start, min(start + at_once, 5))
        sums = {
            key: torch.from_numpy(
                np.asarray(sum(weights[i] * models[i][key].astype("float64") for i in part))
            )
            for key in RAGGED
        }
        summed.add_sums(sums, sum(weights[i] for i in part))
    mine, theirs = summed.arrays(), one_by_one.arrays()
    for key in RAGGED:
        np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-12, atol=1e-12)


def test_a_model_of_weight_0_changes_nothing_and_alone_makes_no_mean() -> None:
    assert of_numbers([0.1, 5.0, 0.7], [3, 0, 1]) == of_numbers([0.1, 0.7], [3, 1])
    with pytest.raises(AssertionError, match="nothing was added"):
        of_numbers([1.0], [0])


def test_the_row_can_be_looked_at_and_left_unused() -> None:
    """Whoever finds a fault in a model overwrites it with the next."""
    mean = WeightedMean({"a": ((2,), "float32"), "b": ((), "float32")})
    mean.part("a")[:] = math.nan
    assert np.isnan(mean.row[:2]).all()
    mean.part("a")[:], mean.part("b")[:] = (1, 2), 3
    assert mean.row.tolist() == [1, 2, 3]
    mean.add(5)
    assert {key: values.tolist() for key, values in mean.arrays().items()} == {"a": [1, 2], "b": 3}


def test_what_is_not_finite_stays_in_its_place() -> None:
    """Nobody is refused here: who adds looks first."""
    spec: Spec = {"x": ((3,), "float64")}
    arrays = added(
        spec, [{"x": np.array([math.nan, math.inf, 1])}, {"x": np.array([1.0, 1, 1])}], [1, 1]
    ).arrays()
    np.testing.assert_array_equal(arrays["x"], [math.nan, math.inf, 1])


def test_a_zero_loses_its_sign() -> None:
    """Sums start from 0, and 0 + -0 is 0: equal, but not to the bit."""
    assert math.copysign(1, of_numbers([-0.0, -0.0], [1, 2])) == 1


@pytest.mark.parametrize(("total", "rounded"), [(1, 0), (3, 2), (5, 2), (-1, 0), (-3, -2)])
def test_a_mean_of_whole_numbers_is_rounded_half_to_even(total: int, rounded: int) -> None:
    spec: Spec = {"whole": ((), "int64"), "broken": ((), "float32")}
    models = [{key: np.array(value) for key in spec} for value in (total, 0)]
    arrays = added(spec, models, [1, 1]).arrays()
    assert (arrays["whole"], arrays["broken"]) == (rounded, total / 2)


def test_a_model_without_arrays_has_a_mean_without_arrays() -> None:
    assert added({}, [{}, {}], [1, 2]).arrays() == {}


# ----------------------------------------------------------------------------- metrics


def with_metrics(*told: tuple[dict[str, Any], float]) -> dict[str, Any]:
    mean = WeightedMean({})
    for metrics, weight in told:
        mean.add_metrics(metrics, weight)
    return mean.metrics()


def test_examples_and_steps_add_up_and_the_rest_is_averaged_over_those_that_have_it() -> None:
    """The loss: (10 * 2 + 30 * 4) / 40 = 3.5; ``own`` is only in the second; a count (10 + 3 * 30) / 40."""
    found = with_metrics(
        ({NUM_EXAMPLES: 10, LOCAL_STEPS: 3, TRAIN_LOSS: 2.0, LABEL_COUNTS: [1.0, 9.0]}, 10),
        ({NUM_EXAMPLES: 30, LOCAL_STEPS: 4, TRAIN_LOSS: 4.0, LABEL_COUNTS: [3.0, 27.0], "own": 7}, 30),
    )
    assert found == {
        NUM_EXAMPLES: 40,
        LOCAL_STEPS: 7,
        TRAIN_LOSS: 3.5,
        LABEL_COUNTS: [2.5, 22.5],
        "own": 7.0,
    }
    assert [type(found[key]) for key in (NUM_EXAMPLES, LOCAL_STEPS, LABEL_COUNTS)] == [int, int, list]


@given(PAIRS)
def test_a_metric_agrees_with_fractions(pairs: list[tuple[float, int]]) -> None:
    told = [({"own": value, "list": [value, -value]}, weight) for value, weight in pairs]
    found = with_metrics(*told)
    values, weights = zip(*pairs, strict=True)
    size = float(exact_mean(np.abs(values).tolist(), weights))
    exact = pytest.approx(float(exact_mean(values, weights)), abs=1e-14 * size, rel=0)
    assert found["own"] == exact
    assert [found["list"][0], -found["list"][1]] == [exact, exact]


@pytest.mark.parametrize("other", [[1.0, 2.0, 3.0], [1.0], 1.0])
def test_a_list_of_another_length_is_named_before_it_is_added(other: Any) -> None:
    mean = WeightedMean({})
    assert mean.problem_with_metrics({"list": [5.0, 6.0], "own": 1.0}) is None
    mean.add_metrics({"list": [5.0, 6.0], "own": 1.0}, 2)
    assert mean.problem_with_metrics({"list": [7.0, 8.0], "more": [1.0]}) is None
    problem = mean.problem_with_metrics({"own": 2.0, "list": other})
    assert problem == f"expected list as in the results before, got {other}"
    assert mean.metrics() == {"list": [5.0, 6.0], "own": 1.0}


def test_a_list_that_was_added_may_be_changed_afterwards() -> None:
    mean, told = WeightedMean({}), [1.0, 2.0]
    mean.add_metrics({"list": told}, 1)
    told[0] = 9.0
    assert mean.metrics() == {"list": [1.0, 2.0]}
