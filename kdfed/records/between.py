"""Two arms of a summary, of which neither need be the baseline: what one saved against the other.

The rules are those of ``comparisons``: paired by seed, a hit bills at least one exchange, a miss is an
infinity. What targets mean stays: shares of what the *baseline* converges to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdfed.pooled import pairs_between
from kdfed.records.schema import Cost
from kdfed.records.summary import comparison_entry, mean_lost
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
        entry = comparison_entry(
            one,
            own.by_seed.values(),
            verdict(one, is_significant, lost),
            baseline=baseline,
            arm=arm,
            target=target,
            cost=cost,
            ceiling_percent=None,
            without_federation=own.without_federation,
            failed=own.failed,
        )
        entries.append(entry.model_dump())
    return entries


def _accuracy_lost(summary: Mapping[str, Any], baseline: str, arm: str) -> float | None:
    """Return how far an arm converges below another, the mean over the seeds in which both finished."""
    theirs, ours = (
        {run["seed"]: run["converged_accuracy"] for run in summary["runs"] if run["arm"] == name}
        for name in (baseline, arm)
    )
    return mean_lost((theirs[seed], ours[seed]) for seed in theirs if seed in ours)
