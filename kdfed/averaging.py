"""The weighted mean of models: McMahan et al. 2017, algorithm 1, the server's part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from kdfed.arrays import Spec, spec_of
from kdfed.errors import KdfedError
from kdfed.metrics import LOCAL_STEPS, NUM_EXAMPLES
from kdfed.models import State

_SUMMED = (NUM_EXAMPLES, LOCAL_STEPS)


class WeightedMean:
    r"""The mean :math:`\sum_k w_k x_k / \sum_k w_k`, summed in float64, in the order of adding.

    Another order gives another mean in its last bits, so whoever adds keeps one. Whole numbers are exact as
    long as their weighted sums are at most 2^53; a zero loses its sign.

    Every mean of kdfed's is one of these: that of a cohort (on a node), of a round, of teachers. Nothing is
    kept of a model once it is added. A model is written into one flat buffer (:meth:`part`) before it is
    added, so that whoever writes it can look at all of it first.

    Parameters
    ----------
    spec
        Shapes and dtypes of a model.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        ends = np.cumsum([prod(shape) for shape, _ in spec.values()], dtype=np.int64).tolist()
        self._slices = {
            key: slice(end - prod(shape), end)
            for (key, (shape, _)), end in zip(spec.items(), ends, strict=True)
        }
        self._size = ends[-1] if ends else 0
        self._total, self._row = np.zeros(self._size), np.empty(0)
        self._weight = 0.0
        self._sums: dict[str, int | float] = {}
        self._means: dict[str, tuple[Any, float]] = {}

    @property
    def row(self) -> np.ndarray:
        """The model that is added next: float64, all arrays one after the other."""
        if len(self._row) != self._size:
            self._row = np.empty(self._size)
        return self._row

    def part(self, key: str) -> np.ndarray:
        """Return a flat, writable view of one array of :attr:`row`."""
        return self.row[self._slices[key]]

    def add(self, weight: float) -> None:
        """Add :attr:`row`, whose numbers are lost.

        Parameters
        ----------
        weight
            w, 0 or larger.
        """
        row = self.row
        row *= weight
        self._total += row
        self._weight += weight

    def add_sums(self, sums: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add models that were summed already.

        Parameters
        ----------
        sums
            The sum of some models, each times its weight; float64, on any device.
        weight
            The sum of those weights.
        """
        for key, values in sums.items():
            self._total[self._slices[key]] += values.reshape(-1).cpu().numpy()
        self._weight += weight

    def add_metrics(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Add the numbers, or lists of numbers, that come with a model.

        ``num-examples`` and ``local-steps`` are summed; any other metric becomes the mean over those that
        have it, with their weights, which must not all be 0. A list has as many numbers as the first of its
        name (:meth:`problem_with_metrics`).
        """
        for key, value in metrics.items():
            if key in _SUMMED:
                self._sums[key] = self._sums.get(key, 0) + value
            else:
                total, weights = self._means.get(key, (0.0, 0.0))
                value = np.array(value, np.float64) if isinstance(value, list) else value
                self._means[key] = total + weight * value, weights + weight

    def problem_with_metrics(self, metrics: Mapping[str, Any]) -> str | None:
        """Say which metric cannot be averaged with those that were added; None when all can."""
        for key, value in metrics.items():
            shape = np.shape(value)
            if key in self._means and np.shape(self._means[key][0]) != shape:
                return f"expected {key} as in the results before, got {value!r:.40}"
        return None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the mean, float64, each [*shape]; of whole numbers it is rounded, half to even.

        The sum of weights must be above 0. Nothing can be added afterwards.
        """
        assert self._weight > 0, "nothing was added"
        self._total /= self._weight
        parts = {key: self._total[self._slices[key]].reshape(shape) for key, (shape, _) in self._spec.items()}
        return {
            key: np.asarray(np.rint(part)) if _is_whole(self._spec[key][1]) else part
            for key, part in parts.items()
        }

    def metrics(self) -> dict[str, Any]:
        """Return the sums and means of the metrics."""
        means = {key: total / weight for key, (total, weight) in self._means.items()}
        means = {key: mean.tolist() if isinstance(mean, np.ndarray) else mean for key, mean in means.items()}
        return {**self._sums, **means}


def _is_whole(dtype: str) -> bool:
    return dtype.startswith(("int", "uint", "bool"))


def average_states(states: Sequence[State], weights: Sequence[float]) -> State:
    r"""Return the weighted mean :math:`\sum_k w_k \theta_k / \sum_k w_k` of models of one architecture.

    Parameters
    ----------
    states
        At least one; all with the same keys and shapes. The mean has the dtypes of the first.
    weights
        One per state, 0 or larger, not all 0; e.g. numbers of examples.

    Raises
    ------
    KdfedError
        If states and weights do not go together.

    References
    ----------
    McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv
    1602.05629, algorithm 1.
    """
    if not states or len(states) != len(weights):
        raise KdfedError(
            f"expected one weight per state, got {len(states)} states and {len(weights)} weights"
        )
    total = math.fsum(weights)
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise KdfedError(f"expected weights of at least 0 with a sum above 0, got {list(weights)}")
    shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in states]
    for index, other in enumerate(shapes):
        if other != shapes[0]:
            differing = sorted(key for key in {*shapes[0], *other} if shapes[0].get(key) != other.get(key))
            raise KdfedError(
                f"expected states of one architecture, state {index} differs in {', '.join(differing)}"
            )
    mean = WeightedMean(spec_of(states[0]))
    for state, weight in zip(states, weights, strict=True):
        for key, value in state.items():
            mean.part(key)[:] = value.detach().double().cpu().numpy().reshape(-1)
        mean.add(weight)
    return {
        key: torch.from_numpy(values).to(states[0][key].device, states[0][key].dtype)
        for key, values in mean.arrays().items()
    }
