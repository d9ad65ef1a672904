"""The weighted mean of models: McMahan et al. 2017, algorithm 1, the server's part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kdfed.errors import KdfedError
from kdfed.models import State


def average_states(states: Sequence[State], weights: Sequence[float]) -> State:
    r"""Return the weighted mean :math:`\sum_k w_k \theta_k / \sum_k w_k` of models of one architecture.

    Sums run in float64, in the given order; results have the dtypes of the first state, integers (such as
    BatchNorm's counters) are rounded.

    Parameters
    ----------
    states
        At least one; all with the same keys and shapes.
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
    average: State = {}
    for key, first in states[0].items():
        mean = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            mean += weight * state[key].double()
        mean /= total
        average[key] = (mean if first.is_floating_point() else mean.round()).to(first.dtype)
    return average
