"""How much an arm saved against the baseline, over paired seeds: medians, exact intervals, verdicts.

A pair is one seed's cost of reaching one target: that of the baseline and that of the arm. With the log-ratio
``d = log(arm / baseline)`` of each pair, a cell (an arm and a target) is described by the median of d and its
order-statistic interval, which needs no assumption on how d is distributed: with n pairs, the interval from
the k-th smallest to the k-th largest covers the median with probability ``1 - 2 P(Bin(n, 1/2) < k)``, and k
is the largest for which that is at least 95%. Ten pairs: from the 2nd to the 9th, 97.9%.

A miss is never left out. Where the baseline alone missed, d is minus infinity; where the arm alone did, plus
infinity; where both did, nobody knows its sign, so it stands at both ends: it lowers the interval's lower end
and raises its upper one, and has no part in the median.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdfed.optional import optional

FEWEST = 6
"""Pairs that an interval needs: with five, the smallest to the largest covers 93.8%."""

LEVEL = 0.05

Verdict = Literal["saves", "does-not-lose", "undecided"]

MOST_LOST = 1.15
"""An arm does not lose if the upper one-sided 95% bound of its ratio is below this..."""

MOST_LOST_ACCURACY = 0.005
"""...and its converged accuracy at most this far below the baseline's."""


AT_LEAST_ONE = ("rounds", "exchanges", "rounds_to_convergence")
"""Costs of which a hit counts at least 1."""


def cost_of(costs: Mapping[str, Any], cost: str) -> float:
    """Return one cost of ``hit``, ``first_hit`` or ``totals``, by its name in ``comparisons``."""
    if cost == "bytes":
        return float(costs["bytes_up"] + costs["bytes_down"])
    return float(costs["round" if cost in ("rounds", "rounds_to_convergence") else cost])


def billed(costs: Mapping[str, Any], cost: str) -> float:
    """Return what a hit counts as: its cost, of rounds and exchanges at least 1."""
    paid = cost_of(costs, cost)
    return max(1.0, paid) if cost in AT_LEAST_ONE else paid


@dataclass(frozen=True)
class Pair:
    """What baseline and arm of one seed paid to reach one target.

    Parameters
    ----------
    baseline, arm
        Their costs; None for a miss.
    """

    baseline: float | None
    arm: float | None

    @property
    def both_missed(self) -> bool:
        """Whether neither reached the target."""
        return self.baseline is None and self.arm is None

    @property
    def log_ratio(self) -> float:
        """Log of the arm's cost over the baseline's, infinite for a miss of one side or a cost of 0.

        Raises
        ------
        ValueError
            If both missed.
        """
        if self.baseline is None and self.arm is None:
            raise ValueError("expected a pair in which somebody reached the target, got two misses")
        if self.arm is None:
            return math.inf
        if self.baseline is None or self.arm == 0:
            return -math.inf
        return math.log(self.arm / self.baseline)


@dataclass(frozen=True)
class Interval:
    """A median and its interval, on any scale; infinite where it is unbounded.

    Parameters
    ----------
    median
        Of the pairs in which somebody reached the target.
    low, high
        Ends of the order-statistic interval; None with fewer than six pairs.
    """

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline, by one cost on the way to one target.

    Parameters
    ----------
    saved
        Percent of the baseline's cost, at most 100; minus infinity where the arm never got there. None
        without a pair in which somebody reached the target, and where the baseline's cost is 0.
    mean
        Geometric mean of the ratio, and the ends of its 95% t interval (None with fewer than six pairs);
        None where somebody missed, or a cost is 0.
    p_value
        Of the two-sided sign test; None with fewer than six pairs.
    upper
        One-sided 95% upper bound of the median ratio; None with fewer than six pairs.
    """

    saved: Interval | None
    mean: tuple[float, float | None, float | None] | None
    p_value: float | None
    upper: float | None


NOTHING = Comparison(None, None, None, None)


def compare(pairs: Sequence[Pair]) -> Comparison:
    """Compare an arm with the baseline by one cost.

    Parameters
    ----------
    pairs
        One per seed.

    Examples
    --------
    >>> compare([Pair(10, 5), Pair(10, 4), Pair(8, None)]).saved
    Interval(median=50.0, low=None, high=None)
    """
    hits = [pair for pair in pairs if not pair.both_missed]
    if any(pair.baseline == 0 for pair in hits):
        return NOTHING
    if not hits:
        return Comparison(None, None, 1.0 if len(pairs) >= FEWEST else None, None)
    logs = sorted(pair.log_ratio for pair in hits)
    if any(pair.arm == 0 for pair in hits):
        return Comparison(Interval(_saved(math.exp(_median(logs))), None, None), None, None, None)
    unknown = len(pairs) - len(hits)
    interval = median_interval(logs, unknown)
    low, high = (None if end is None else _saved(math.exp(end)) for end in (interval.high, interval.low))
    saved_percent = Interval(_saved(math.exp(interval.median)), low, high)
    censored = unknown or not all(map(math.isfinite, logs))
    return Comparison(
        saved_percent,
        None if censored else _geometric(logs),
        sign_test(logs, unknown),
        upper_bound(logs, unknown),
    )


def _saved(ratio: float) -> float:
    return 100 * (1 - ratio)


def _median(ordered: Sequence[float]) -> float:
    """Return the median of sorted log-ratios; beside an infinity, the larger of the middle two.

    Half of an infinity is none, and the larger ratio flatters nobody.
    """
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else high


def _tail(n: int, k: int) -> float:
    """Return P(Bin(n, 1/2) < k)."""
    return math.fsum(math.comb(n, i) for i in range(k)) / float(2**n)


def median_interval(logs: Sequence[float], unknown: int = 0) -> Interval:
    """Return the median of log-ratios with its order-statistic interval.

    Parameters
    ----------
    logs
        Finite or infinite, at least one.
    unknown
        How many more pairs there are of which nobody knows the log-ratio.

    Examples
    --------
    >>> median_interval([-3, -2, -1, 0, 1, 2])
    Interval(median=-0.5, low=-3, high=2)
    """
    n = len(logs) + unknown
    median = _median(sorted(logs))
    if n < FEWEST:
        return Interval(median, None, None)
    k = max(k for k in range(1, n // 2 + 1) if 2 * _tail(n, k) <= LEVEL)
    low = sorted([*logs, *[-math.inf] * unknown])[k - 1]
    high = sorted([*logs, *[math.inf] * unknown])[n - k]
    return Interval(median, low, high)


def upper_bound(logs: Sequence[float], unknown: int = 0) -> float | None:
    """Return the one-sided 95% upper bound of the median ratio; None with fewer than six pairs."""
    n = len(logs) + unknown
    if n < FEWEST:
        return None
    k = max(k for k in range(1, n // 2 + 1) if _tail(n, k) <= LEVEL)
    return math.exp(sorted([*logs, *[math.inf] * unknown])[n - k])


def sign_test(logs: Sequence[float], unknown: int = 0) -> float | None:
    """Return the p-value of the two-sided sign test; None with fewer than six pairs.

    Equal costs say nothing and are left out. A pair in which both missed counts against whatever the others
    say.

    Examples
    --------
    >>> sign_test([-1] * 10)
    0.001953125
    """
    if len(logs) + unknown < FEWEST:
        return None
    less, more = sum(log < 0 for log in logs), sum(log > 0 for log in logs)
    n, fewer = less + more + unknown, min(less, more) + unknown
    return min(1.0, 2 * _tail(n, fewer + 1)) if n else 1.0


def holm(p_values: Sequence[float | None], level: float = LEVEL) -> list[bool]:
    """Tell which hypotheses Holm's procedure rejects (Holm 1979), the missing ones left out.

    Examples
    --------
    >>> holm([0.01, 0.04, None, 0.03])
    [True, False, False, False]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    rejected = [False] * len(p_values)
    for rank, (p, index) in enumerate(known):
        if p > level / (len(known) - rank):
            break
        rejected[index] = True
    return rejected


def verdict(found: Comparison, significant: bool, accuracy_lost: float | None) -> Verdict | None:
    """Return what may be said of a cell.

    Parameters
    ----------
    found
        The cell.
    significant
        Whether its sign test passed :func:`holm` over all cells.
    accuracy_lost
        How far the arm's converged accuracy is below the baseline's; None where that is unknown.

    Returns
    -------
    str or None
        ``saves``: the interval of the ratio is below 1, significantly. ``does-not-lose``: the upper one-sided
        95% bound of the ratio is below 1.15, and at most 0.5 points of converged accuracy are lost. Else
        ``undecided``. None where there is no interval.
    """
    if found.p_value is None:
        return None
    if found.saved is None or found.saved.low is None or found.upper is None:
        return "undecided"  # nobody ever got there
    if significant and found.saved.low > 0:
        return "saves"
    kept = accuracy_lost is not None and accuracy_lost <= MOST_LOST_ACCURACY + 1e-12
    return "does-not-lose" if kept and found.upper < MOST_LOST else "undecided"


def _geometric(logs: Sequence[float]) -> tuple[float, float | None, float | None]:
    mean, low, high = mean_interval(logs)
    if low is None or high is None:
        return math.exp(mean), None, None
    return math.exp(mean), math.exp(low), math.exp(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean and its 95% t interval ``mean +- t(n - 1) * s / sqrt(n)``.

    Parameters
    ----------
    values
        At least one number.

    Returns
    -------
    tuple of float
        Mean, low, high; low and high are None with fewer than six values.

    Raises
    ------
    RunError
        If there are six values or more and scipy is not installed.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < FEWEST:
        return mean, None, None
    stats = optional("scipy.stats", "intervals over seeds")
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
