"""Results in Flower's records: the check of their arrays, and the mean of a round's.

Flower's own averaging keeps every reply until the last has come and decodes each of its tensors; here a reply
is copied into one flat buffer, checked and added there, and can then be dropped.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from kdfed.arrays import Spec, problem_with_arrays
from kdfed.averaging import WeightedMean
from kdfed.limits import Reach
from kdfed.messages import ARRAYS, METRICS, numbers_of, record_of
from kdfed.metrics import NUM_EXAMPLES, problem_with_metrics
from kdfed.private.flwr import flat_view


class RoundMean:
    """The :class:`~kdfed.averaging.WeightedMean` of results, weighted by ``num-examples``.

    Parameters
    ----------
    spec
        Shapes and dtypes of the model.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec, self._mean = spec, WeightedMean(spec)

    def add(self, result: RecordDict, reach: Reach | None = None) -> str | None:
        """Add one result.

        Parameters
        ----------
        result
            Arrays and metrics.
        reach
            How far its arrays may lie from those that were sent. Default: no bound.

        Returns
        -------
        str or None
            What is wrong with it, in one sentence; then nothing was added.
        """
        metrics = cast("dict[str, Any]", dict(record_of(result, METRICS, MetricRecord)))
        problem = problem_with_metrics(metrics) or self._mean.problem_with_metrics(metrics)
        if problem is None and not self._fill(record_of(result, ARRAYS, ArrayRecord)):
            problem = self._fill_slowly(result)
        if problem is None and reach is not None:
            problem = reach.problem_with({key: self._mean.part(key) for key in self._spec})
        if problem is None:
            weight = float(metrics[NUM_EXAMPLES])
            self._mean.add(weight)
            self._mean.add_metrics(metrics, weight)
        return problem

    def result(self) -> RecordDict:
        """Return the mean as an ordinary result; at least one must have been added."""
        arrays = {
            key: Array(np.asarray(values, dtype=self._spec[key][1]))
            for key, values in self._mean.arrays().items()
        }
        return RecordDict({ARRAYS: ArrayRecord(arrays), METRICS: MetricRecord(self._mean.metrics())})

    def _fill(self, record: ArrayRecord) -> bool:
        """Copy arrays into the row; False where one is not finite, or not packed as ours are."""
        if set(record) != set(self._spec):
            return False
        for key, (shape, dtype) in self._spec.items():
            values = flat_view(record[key], shape, dtype)
            if values is None:
                return False
            self._mean.part(key)[:] = values
        return bool(np.isfinite(self._mean.row).all())

    def _fill_slowly(self, result: RecordDict) -> str | None:
        """Copy whatever has the right shapes and dtypes, or say what has not."""
        problem = problem_with_result(result, self._spec)
        if problem is None:
            for key, array in record_of(result, ARRAYS, ArrayRecord).items():
                self._mean.part(key)[:] = numbers_of(array).reshape(-1)
        return problem


def problem_with_result(result: RecordDict, spec: Spec, reach: Reach | None = None) -> str | None:
    """Say what is wrong with the arrays of a result; None when all is well."""
    record = record_of(result, ARRAYS, ArrayRecord)
    try:
        arrays = {key: _decoded(array, spec.get(key)) for key, array in record.items()}
        problem = problem_with_arrays(arrays, spec)
    except Exception as error:
        return f"arrays that cannot be read: {error}"
    return problem if problem is not None or reach is None else reach.problem_with(arrays)


def _decoded(array: Array, expected: tuple[tuple[int, ...], str] | None) -> np.ndarray:
    values = None if expected is None else flat_view(array, *expected)
    return numbers_of(array) if expected is None or values is None else values.reshape(expected[0])
