"""Which candidate is better: fewer exchanges to a share of the best converged accuracy.

All candidates of a rung ran equally long. For each tuning seed there is one level that all of them should
reach; a candidate's cost is the median over the seeds of the exchanges that it took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeAlias

from kdfed.convergence import converged, hit, resolve_target


@dataclass(frozen=True)
class Curve:
    """What one candidate did with one tuning seed.

    Parameters
    ----------
    accuracies
        On the tuning examples, by round; the start's first.
    exchanges
        So far, by round.
    """

    accuracies: tuple[float, ...]
    exchanges: tuple[int, ...]

    @property
    def converged(self) -> float:
        """What it converges to."""
        return converged(self.accuracies)

    def cost(self, level: float) -> float:
        """Return the exchanges up to the hit of an accuracy, at least 1; infinity where it is missed."""
        reached = hit(self.accuracies, level)
        return math.inf if reached is None else float(max(1, self.exchanges[reached]))

    def until(self, rounds: int) -> Curve:
        """Return its first rounds."""
        return Curve(self.accuracies[: rounds + 1], self.exchanges[: rounds + 1])


Curves: TypeAlias = Mapping[int, Curve]
"""By tuning seed; without those in which the candidate failed."""


def levels(
    candidates: Sequence[Curves], seeds: Sequence[int], target: str, majority: float
) -> dict[int, float]:
    """Return the accuracy to reach, by tuning seed.

    Parameters
    ----------
    candidates
        Among whose converged accuracies the best counts.
    seeds
        The tuning seeds; one in which every candidate failed has no level.
    target
        Which share of the best: see :func:`kdfed.convergence.resolve_target`.
    majority
        The share of the largest class among the tuning examples; 0 in a regression.
    """
    best = {
        seed: max(curves[seed].converged for curves in candidates if seed in curves)
        for seed in seeds
        if any(seed in curves for curves in candidates)
    }
    return {seed: resolve_target(target, value, majority) for seed, value in best.items()}


def ranked(candidates: Sequence[Curves], level: Mapping[int, float], seeds: Sequence[int]) -> list[int]:
    """Return the candidates' places, the best first.

    The order is that of the median exchanges to the level; then of the number of seeds that missed it; then
    of the mean converged accuracy, the highest first; then their own. A candidate that failed with any seed
    comes last.

    Parameters
    ----------
    candidates
        In their order.
    level
        From :func:`levels`.
    seeds
        The tuning seeds.
    """

    def key(index: int) -> tuple[float, ...]:
        curves = candidates[index]
        if any(seed not in curves for seed in seeds):
            return (1, 0, 0, 0, index)
        costs = [curves[seed].cost(level[seed]) for seed in seeds]
        missed = sum(map(math.isinf, costs))
        return (0, median(costs), missed, -fmean(curves[seed].converged for seed in seeds), index)

    return sorted(range(len(candidates)), key=key)


def kept(count: int, share: float) -> int:
    """Return how many of so many candidates go on to the next rung, at least one."""
    return max(1, round(share * count))
