"""The mean of a round in one flat buffer, against Flower's own averaging."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from kdfed.arrays import Spec
from kdfed.messages import ARRAYS, METRICS, Train
from kdfed.metrics import LOCAL_STEPS, NUM_EXAMPLES, TRAIN_LOSS
from kdfed.private.flwr import identify, name_message
from strategies.round_mean import RoundMean, problem_with_result

SPEC: Spec = {
    "weight": ((3, 4, 2), "float32"),
    "bias": ((5,), "float64"),
    "half": ((2,), "float16"),
    "batches": ((), "int64"),
    "nothing": ((0, 3), "float32"),
}


def _result(seed: int, **metrics: Any) -> RecordDict:
    generator = np.random.default_rng(seed)
    arrays = {
        key: Array(np.asarray(10 * generator.standard_normal(shape), dtype=dtype))
        for key, (shape, dtype) in SPEC.items()
    }
    numbers = {NUM_EXAMPLES: int(generator.integers(1, 90)), TRAIN_LOSS: float(generator.random())}
    steps = {LOCAL_STEPS: int(generator.integers(0, 50))}
    return RecordDict({ARRAYS: ArrayRecord(arrays), METRICS: MetricRecord({**numbers, **steps, **metrics})})


def _mean(results: list[RecordDict]) -> RecordDict:
    mean = RoundMean(SPEC)
    assert [mean.add(result) for result in results] == [None] * len(results)
    return mean.result()


def test_one_result_is_its_own_mean():
    result, mean = _result(1), _mean([_result(1)])
    for key, array in result[ARRAYS].items():
        exact = key != "bias"  # float64 has no digits to spare for the weight
        np.testing.assert_allclose(mean[ARRAYS][key].numpy(), array.numpy(), rtol=0 if exact else 1e-15)
    assert dict(mean[METRICS]) == dict(result[METRICS])


def test_a_worked_number():
    """(1 * 2 + 3 * 4) / 4 = 3.5; the counter (1 * 2 + 3 * 4) / 4 = 3.5 is rounded to even, 4."""
    spec: Spec = {"w": ((1,), "float32"), "n": ((), "int64")}
    mean = RoundMean(spec)
    for weight, value in ((1, 2), (3, 4)):
        arrays = ArrayRecord({"w": Array(np.array([value], np.float32)), "n": Array(np.array(value))})
        metrics = MetricRecord({NUM_EXAMPLES: weight, LOCAL_STEPS: 5, "extra": float(value)})
        mean.add(RecordDict({ARRAYS: arrays, METRICS: metrics}))
    result = mean.result()
    assert result[ARRAYS]["w"].numpy().tolist() == [3.5]
    assert result[ARRAYS]["n"].numpy() == 4
    assert dict(result[METRICS]) == {NUM_EXAMPLES: 4, LOCAL_STEPS: 10, "extra": 3.5}


def test_it_agrees_with_flowers_own_averaging_over_the_same_replies():
    """FedAvg over 40 replies, which it averages in their own precision and leaves counters as floats."""
    identify(1, 1)
    results = [_result(seed) for seed in range(40)]
    replies = []
    for node, result in enumerate(results):
        asked = Message(RecordDict(), node, Train.type)
        name_message(asked, str(node))
        replies.append(Message(result, reply_to=asked))
    twin, metrics = FedAvg(fraction_evaluate=0.0).aggregate_train(1, replies)
    assert twin is not None
    assert metrics is not None
    mean = _mean(results)
    tolerance = {"half": 1e-2, "batches": 0.5, "nothing": 0.0}
    for key, array in twin.items():
        mine = mean[ARRAYS][key].numpy()
        assert (mine.shape, str(mine.dtype)) == SPEC[key]
        np.testing.assert_allclose(mine, array.numpy(), atol=tolerance.get(key, 1e-6), rtol=1e-6)
    assert mean[METRICS][TRAIN_LOSS] == pytest.approx(metrics[TRAIN_LOSS])
    steps = [result[METRICS][LOCAL_STEPS] for result in results]
    assert mean[METRICS][LOCAL_STEPS] == sum(steps)


def test_an_array_that_is_packed_in_another_way_means_the_same():
    """NumPy stores the transpose of a matrix in Fortran's order; the header is then another one."""
    spec: Spec = {"w": ((2, 3), "float32")}
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    mean = RoundMean(spec)
    for array in (plain, np.asfortranarray(plain)):
        metrics = MetricRecord({NUM_EXAMPLES: 1})
        assert mean.add(RecordDict({"arrays": ArrayRecord({"w": Array(array)}), "metrics": metrics})) is None
    np.testing.assert_array_equal(mean.result()["arrays"]["w"].numpy(), plain)


def _without_an_array(result: RecordDict) -> None:
    del result[ARRAYS]["bias"]


def _without_arrays(result: RecordDict) -> None:
    del result[ARRAYS]


def _not_finite(result: RecordDict) -> None:
    result[ARRAYS]["half"] = Array(np.array([1, np.inf], np.float16))


def _other_shape(result: RecordDict) -> None:
    result[ARRAYS]["weight"] = Array(np.zeros((4, 3, 2), np.float32))


def _other_dtype(result: RecordDict) -> None:
    result[ARRAYS]["bias"] = Array(np.zeros(5, np.float32))


def _cut_off(result: RecordDict) -> None:
    result[ARRAYS]["bias"].data = result[ARRAYS]["bias"].data[:-8]


def _other_stype(result: RecordDict) -> None:
    result[ARRAYS]["bias"].stype = "pickle"


def _no_examples(result: RecordDict) -> None:
    result[METRICS][NUM_EXAMPLES] = 0


def _listed(result: RecordDict) -> None:
    result[METRICS][TRAIN_LOSS] = [1.0, 2.0]


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (_without_an_array, r"missing \['bias'\]"),
        (_without_arrays, "wrong arrays: missing"),
        (_not_finite, "not finite: half"),
        (_other_shape, r"wrong shape of weight: expected \(3, 4, 2\), got \(4, 3, 2\)"),
        (_other_dtype, "wrong dtype of bias: expected float64, got float32"),
        (_cut_off, "arrays that cannot be read"),
        (_other_stype, "arrays that cannot be read"),
        (_no_examples, "num-examples above 0"),
        (_listed, "expected a number as train-loss"),
    ],
)
def test_whatever_is_wrong_is_named_and_nothing_of_it_is_added(tamper, reason):
    bad = _result(3)
    tamper(bad)
    mean = RoundMean(SPEC)
    assert mean.add(_result(1)) is None
    problem = mean.add(bad)
    assert problem is not None
    assert re.search(reason, problem)
    assert mean.add(_result(2)) is None
    found, expected = mean.result(), _mean([_result(1), _result(2)])
    for key, array in expected[ARRAYS].items():
        np.testing.assert_array_equal(found[ARRAYS][key].numpy(), array.numpy())
    assert dict(found[METRICS]) == dict(expected[METRICS])


def test_arrays_are_checked_alike_where_results_are_not_summed():
    assert problem_with_result(_result(1), SPEC) is None
    bad = _result(1)
    _not_finite(bad)
    assert problem_with_result(bad, SPEC) == "not finite: half"
    _cut_off(bad)
    assert str(problem_with_result(bad, SPEC)).startswith("arrays that cannot be read")
