"""The weighted mean of a round, summed cohort by cohort, so that memory does not grow with their number.

Flower's own averaging keeps every reply until the last has come and decodes each of its tensors; here a reply
is copied into one flat buffer, checked and added there, and can then be dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from kdfed import wire
from kdfed.limits import Reach

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

_SUMMED = (wire.NUM_EXAMPLES, wire.LOCAL_STEPS)


class RoundMean:
    r"""The mean of results, weighted by ``num-examples``, in the order in which they are added.

    With weights :math:`n_c` and results :math:`x_c` of cohorts c it is
    :math:`\sum_c n_c x_c / \sum_c n_c` in float64. Whole-numbered arrays are rounded. ``num-examples`` and
    ``local-steps`` are sums; any other metric is the mean over the cohorts that sent it, with the same
    weights.

    Parameters
    ----------
    spec
        Shapes and dtypes of the model.
    """

    def __init__(self, spec: wire.Spec) -> None:
        self._spec = spec
        ends = np.cumsum([prod(shape) for shape, _ in spec.values()], dtype=np.int64).tolist()
        self._places = {
            key: slice(end - prod(shape), end)
            for (key, (shape, _)), end in zip(spec.items(), ends, strict=True)
        }
        size = ends[-1] if ends else 0
        self._total, self._row = np.zeros(size), np.empty(size)
        self._weight = 0.0
        self._sums: dict[str, int | float] = {}
        self._means: dict[str, tuple[float, float]] = {}

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
        metrics = record_of(result, wire.METRICS, MetricRecord)
        problem = wire.problem_with_metrics(metrics) or _not_a_number(metrics)
        if problem is None and not self._fill(record_of(result, wire.ARRAYS, ArrayRecord)):
            problem = self._fill_slowly(result)
        if problem is None and reach is not None:
            problem = reach.problem_with({key: self._row[place] for key, place in self._places.items()})
        if problem is not None:
            return problem
        numbers = cast("dict[str, int | float]", dict(metrics))
        weight = float(numbers[wire.NUM_EXAMPLES])
        self._row *= weight
        self._total += self._row
        self._weight += weight
        for key, value in numbers.items():
            if key in _SUMMED:
                self._sums[key] = self._sums.get(key, 0) + value
            else:
                total, weights = self._means.get(key, (0.0, 0.0))
                self._means[key] = total + weight * value, weights + weight
        return None

    def result(self) -> RecordDict:
        """Return the mean as an ordinary result; at least one must have been added."""
        assert self._weight > 0, "nothing was added"
        self._total /= self._weight
        arrays = {}
        for key, (shape, dtype) in self._spec.items():
            part = self._total[self._places[key]].reshape(shape)
            whole = np.dtype(dtype).kind in "iub"
            arrays[key] = Array(np.asarray(np.rint(part) if whole else part, dtype=dtype))
        means = {key: total / weight for key, (total, weight) in self._means.items()}
        return RecordDict(
            {wire.ARRAYS: ArrayRecord(arrays), wire.METRICS: MetricRecord({**self._sums, **means})}
        )

    def _fill(self, record: ArrayRecord) -> bool:
        """Copy arrays into the row; False where one is not finite, or not packed as ours are."""
        if set(record) != set(self._spec):
            return False
        for key, (shape, dtype) in self._spec.items():
            values = _unpacked(record[key], shape, dtype)
            if values is None:
                return False
            self._row[self._places[key]] = values
        return bool(np.isfinite(self._row).all())

    def _fill_slowly(self, result: RecordDict) -> str | None:
        """Copy whatever has the right shapes and dtypes, or say what has not."""
        problem = problem_with_arrays(result, self._spec)
        if problem is None:
            for key, array in record_of(result, wire.ARRAYS, ArrayRecord).items():
                self._row[self._places[key]] = array.numpy().reshape(-1)
        return problem


def record_of(content: RecordDict, key: str, kind: type[R]) -> R:
    """Return a record of this kind, an empty one where there is none.

    ``content.array_records`` and its like copy all records of a kind at every access.
    """
    record = content.get(key)
    return record if isinstance(record, kind) else kind()


def problem_with_arrays(result: RecordDict, spec: wire.Spec, reach: Reach | None = None) -> str | None:
    """Say what is wrong with the arrays of a result; None when all is well."""
    record = record_of(result, wire.ARRAYS, ArrayRecord)
    try:
        arrays = {key: _decoded(array, spec.get(key)) for key, array in record.items()}
        problem = wire.problem_with(arrays, spec)
    except Exception as error:
        return f"arrays that cannot be read: {error}"
    for key, array in arrays.items() if problem is None else ():
        if len(record[key].data) > array.nbytes + _MOST_HEADER:
            return f"{len(record[key].data)} bytes for {key}, whose numbers take {array.nbytes}"
    return problem if problem is not None or reach is None else reach.problem_with(arrays)


_MOST_HEADER = 4096  # bytes that NumPy may put before the numbers


def _decoded(array: Array, expected: tuple[tuple[int, ...], str] | None) -> np.ndarray:
    values = None if expected is None else _unpacked(array, *expected)
    return array.numpy() if expected is None or values is None else values.reshape(expected[0])


def _unpacked(array: Array, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Return a flat view of an array of this shape and dtype; None where it is packed in another way.

    ``Array.numpy()`` parses the same header of some 100 characters anew for every tensor of every reply.
    """
    header, data = _header(shape, dtype), array.data
    if array.stype != "numpy.ndarray" or not data.startswith(header):
        return None
    if len(data) != len(header) + prod(shape) * np.dtype(dtype).itemsize:
        return None
    return np.frombuffer(data, dtype, offset=len(header))


@lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what stands before the numbers in NumPy's file format."""
    file = BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"shape": shape, "fortran_order": False, "descr": description}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _not_a_number(metrics: Mapping[str, object]) -> str | None:
    for key, value in metrics.items():
        if not isinstance(value, int | float):
            return f"expected a number as {key}, got {value!r}"
    return None
