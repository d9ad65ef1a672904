r"""The mean of several rounds' global models, which is evaluated and delivered in place of the last one.

After round r, with :math:`r \ge f` (``from``) and at most K models (``last``),

.. math:: \bar\theta_r = \frac{1}{n} \sum_{i = r - n + 1}^{r} \theta_i, \qquad n = \min(K, r - f + 1)

The rounds go on from :math:`\theta_r` itself, so nothing is trained or sent otherwise than without a mean,
and it costs no exchange. The start is no model of a round: it is in no mean.

The buffers of BatchNorm are averaged like weights. That is not what a pass over the participants' examples
with the mean of the weights would measure (Izmailov et al. 2018, section 3.2), and the server has no such
examples: a mean of variances leaves out how far the models' means lie apart.

Deviations from the source: it takes every model from three quarters of the rounds on (``last: all``), with a
cyclic learning rate, which is no part of this; and it leaves buffers as they were there.

References
----------
Caldarola et al. 2022, "Improving Generalization in Federated Learning by Seeking Flat Minima", arXiv
2203.11834: SWA on the server.
Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", arXiv 1803.05407,
algorithm 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field

from kdfed.models import State
from kdfed.settings import PositiveInt, Settings


class ModelAverage(Settings):
    """The mean of several rounds' global models is evaluated and delivered; rounds go on from the last."""

    last: Annotated[int, Field(ge=2, le=10**6)] | Literal["all"] = "all"
    """Of how many rounds, at most: the last ones, which the server keeps in memory; or all, as one sum."""
    from_: PositiveInt = 1
    """The first round whose model counts. Before it, a round's own model is evaluated."""


class RoundsMean:
    """Follows the models of an arm's rounds.

    Parameters
    ----------
    settings
        Which of them count.
    """

    def __init__(self, settings: ModelAverage) -> None:
        self._from, self._is_whole = settings.from_, settings.last == "all"
        self._kept: deque[State] = deque(maxlen=None if settings.last == "all" else settings.last)
        self._total: State = {}
        self._count = 0

    def after(self, number: int, state: State) -> State:
        """Return what is delivered after a round.

        Parameters
        ----------
        number
            The round, from 1; each is given once, in order.
        state
            The global model's weights after it. They are kept: not to be changed.

        Returns
        -------
        dict of Tensor
            On the CPU, with the dtypes of ``state``; summed in float64, the oldest first. Whole numbers are
            rounded, half to even.
        """
        if number < self._from:
            return state
        if self._is_whole:
            self._total = _sum([self._total, state] if self._total else [state])
            self._count += 1
        else:
            self._kept.append(state)
            self._total, self._count = _sum(self._kept), len(self._kept)
        return {key: _as(self._total[key] / self._count, value.dtype) for key, value in state.items()}


def _sum(states: Iterable[State]) -> State:
    total: State = {}
    for state in states:
        for key, value in state.items():
            values = value.detach().cpu().double()
            total[key] = total[key] + values if key in total else values
    return total


def _as(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (values if dtype.is_floating_point else values.round()).to(dtype)
