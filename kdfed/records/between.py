"""Two arms of a summary, of which neither need be the baseline: what one saved against the other.

The rules are those of ``comparisons``: paired by seed, a hit bills at least one exchange, a miss is an
infinity. What targets mean stays: shares of what the *baseline* converges to.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from kdfed.pooled import pairs_between
from kdfed.records.schema import ComparisonEntry, Cost
from kdfed.records.summary import bounded
from kdfed.savings import NOTHING, compare, holm, verdict


def compare_arms(summary: Mapping[str, Any], baseline: str, arm: str, cost: Cost) -> list[dict[str, Any]]:
    """Compare two arms at every target; verdicts hold together (Holm).

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    baseline, arm
        Any two of its arms.
    cost
        By what they are compared.

    Returns
    -------
    list of dict
        One entry a target, like those of ``comparisons``; without a ceiling.
    """
    targets = summary["targets"]
    pairs = [pairs_between(summary, baseline, arm, target, cost) for target in targets]
    found = [compare(list(own.by_seed.values())) if own.by_seed else NOTHING for own in pairs]
    significant = holm([one.p_value for one in found])
    lost = _accuracy_lost(summary, baseline, arm)
    entries = []
    for target, own, one, is_significant in zip(targets, pairs, found, significant, strict=True):
        every = own.by_seed.values()
        entry = ComparisonEntry.model_validate(
            {
                "baseline": baseline,
                "arm": arm,
                "target": target,
                "cost": cost,
                "saved_percent": None if one.saved is None else bounded(one.saved),
                "ratio": None
                if one.mean is None
                else dict(zip(("geometric_mean", "low", "high"), one.mean, strict=True)),
                "verdict": verdict(one, is_significant, lost),
                "p_value": one.p_value,
                "ceiling_percent": None,
                "pairs": len(every),
                "censored": {
                    "baseline": sum(pair.baseline is None and pair.arm is not None for pair in every),
                    "arm": sum(pair.baseline is not None and pair.arm is None for pair in every),
                    "both": sum(pair.both_missed for pair in every),
                },
                "without_federation": own.without_federation,
                "failed": own.failed,
            }
        )
        entries.append(entry.model_dump())
    return entries


def _accuracy_lost(summary: Mapping[str, Any], baseline: str, arm: str) -> float | None:
    """Return how far an arm converges below another, the mean over the seeds in which both finished."""
    theirs, ours = (
        {run["seed"]: run["converged_accuracy"] for run in summary["runs"] if run["arm"] == name}
        for name in (baseline, arm)
    )
    both = [(theirs[seed], ours[seed]) for seed in theirs if seed in ours]
    lost = [one - other for one, other in both if one is not None and other is not None]
    return fmean(lost) if lost else None
