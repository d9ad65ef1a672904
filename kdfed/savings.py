"""How much an arm saved against the baseline, over paired seeds, with the interval.

A pair is one seed's cost of reaching one target: that of the baseline and that of the arm. With d_i the
saving of pair i of n, the interval is that of the mean, ``mean(d) +- t(n - 1) * s / sqrt(n)``, where s is the
sample standard deviation and t(n - 1) the 97.5% quantile of Student's distribution. One pair gives no
interval: low and high are then the mean itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kdfed.optional import optional


@dataclass(frozen=True)
class PairedRuns:
    """Baseline and arm of one seed: what each paid to reach one target.

    Parameters
    ----------
    baseline
        Cost of the baseline, or None when it missed the target.
    arm
        Cost of the arm; of a miss, what it is counted as (None when that is unknown).
    arm_missed
        Whether the arm missed the target.
    """

    baseline: float | None
    arm: float | None
    arm_missed: bool


def compare(pairs: Sequence[PairedRuns]) -> dict[str, object]:
    """Compare an arm with the baseline by one cost.

    Parameters
    ----------
    pairs
        One per seed.

    Returns
    -------
    dict
        ``saved_percent`` is the mean of ``100 * (1 - arm / baseline)``, and ``ratio`` the geometric mean of
        ``arm / baseline`` with its interval on the log scale; each holds a mean, ``low`` and ``high``. They
        are None without a pair, and where a cost of 0 leaves them undefined. ``pairs`` is how many seeds are
        in the mean. ``censored`` counts misses: of the baseline alone and of both (left out of the mean), and
        of the arm alone (in the mean, at its counted cost).

    Examples
    --------
    >>> compare([PairedRuns(10, 5, False)])["saved_percent"]
    {'mean': 50.0, 'low': 50.0, 'high': 50.0}
    """
    used = [(pair.baseline, pair.arm) for pair in pairs if pair.baseline is not None and pair.arm is not None]
    saved = ratio = None
    if used and all(baseline > 0 for baseline, _ in used):
        mean, low, high = mean_interval([100 * (1 - arm / baseline) for baseline, arm in used])
        saved = {"mean": mean, "low": low, "high": high}
        if all(arm > 0 for _, arm in used):
            logs = mean_interval([math.log(arm / baseline) for baseline, arm in used])
            names = ("geometric_mean", "low", "high")
            ratio = {name: math.exp(value) for name, value in zip(names, logs, strict=True)}
    return {
        "saved_percent": saved,
        "ratio": ratio,
        "pairs": len(used),
        "censored": {
            "baseline": sum(pair.baseline is None and not pair.arm_missed for pair in pairs),
            "arm": sum(pair.baseline is not None and pair.arm_missed for pair in pairs),
            "both": sum(pair.baseline is None and pair.arm_missed for pair in pairs),
        },
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95% t interval; of one value, the value three times.

    Parameters
    ----------
    values
        At least one number.

    Returns
    -------
    tuple of float
        Mean, low, high.

    Raises
    ------
    RunError
        If there are several values and scipy is not installed.
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, mean, mean
    stats = optional("scipy.stats", "intervals over seeds")
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
