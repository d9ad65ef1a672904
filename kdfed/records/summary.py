"""``summary.json``: hits, totals and comparisons, from the records of a run."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from kdfed import convergence
from kdfed.config import Experiment, Target
from kdfed.records.rounds import Failure, Outcome, RoundRecord, Stopped
from kdfed.records.schema import (
    COSTS,
    ComparisonEntry,
    ConsolidationEntry,
    Cost,
    CumulativeCosts,
    FailureEntry,
    PartitionEntry,
    RunEntry,
    Summary,
)
from kdfed.records.versions import versions
from kdfed.savings import PairedRuns, compare
from kdfed.task import TASKS

Curves = dict[tuple[str, int], list[RoundRecord]]
Ends = Mapping[tuple[str, int], Outcome]


def summarise(
    experiment: Experiment,
    engine: str,
    records: Sequence[RoundRecord],
    outcomes: Sequence[Outcome],
    partitions: Sequence[Mapping[str, Any]] = (),
    failures: Sequence[Failure] = (),
    unfinished: Stopped = "failed",
) -> dict[str, Any]:
    """Sum up an experiment, finished or not.

    A run without an outcome did not finish. A run without a single evaluation has no entry. A target that
    is a share of the best accuracy of a baseline that did not finish is unresolved: nobody reaches it, and
    nobody misses it.

    Parameters
    ----------
    experiment
        What was run.
    engine
        The name of what ran it.
    records
        Every evaluation, in any order of arms and seeds.
    outcomes
        How each run ended that finished.
    partitions
        Who holds which classes: ``seed``, ``participants``, ``moved``, ``unused``, ``class_names``, and
        ``counts`` (the first 100 participants x classes) of each seed.
    failures
        Runs that could not go on, and why.
    unfinished
        How a run ended that has neither an outcome nor a failure: ``failed`` or ``interrupted``.

    Returns
    -------
    dict
        What ``summary.json`` holds.
    """
    curves: Curves = {}
    for record in records:
        curves.setdefault((record.arm, record.seed), []).append(record)
    ends = {key: Outcome(*key, unfinished, "") for key in curves}
    ends |= {(one.arm, one.seed): Outcome(one.arm, one.seed, "failed", "") for one in failures}
    ends |= {(outcome.arm, outcome.seed): outcome for outcome in outcomes}
    summary = Summary(
        experiment=experiment.name,
        engine=engine,
        seeds=list(experiment.seeds),
        targets=[str(target) for target in experiment.targets],
        metric=TASKS[experiment.data.task].metric,
        versions={"python": platform.python_version(), **versions()},
        failures=[FailureEntry.model_validate(failure, from_attributes=True) for failure in failures],
        runs=[
            _run(
                experiment,
                curves[arm, seed],
                target,
                _accuracy(experiment, curves, ends, seed, target),
                ends[arm, seed],
            )
            for arm in experiment.arm_order
            for seed in experiment.seeds
            for target in experiment.targets
            if (arm, seed) in curves
        ],
        comparisons=[
            _compare(experiment, curves, ends, arm, target, cost)
            for arm in experiment.arm_order[1:]
            for target in experiment.targets
            for cost in COSTS
        ],
        partitions=[PartitionEntry.model_validate(partition) for partition in partitions],
        consolidations=[
            ConsolidationEntry.model_validate(
                {"arm": outcome.arm, "seed": outcome.seed, **outcome.consolidation}
            )
            for outcome in outcomes
            if outcome.consolidation is not None
        ],
    )
    return summary.model_dump()


def _accuracy(experiment: Experiment, curves: Curves, ends: Ends, seed: int, target: Target) -> float | None:
    """Return the accuracy to reach, None when it is a share of what the baseline never measured."""
    if not isinstance(target, str):
        return convergence.resolve_target(target, math.nan)
    if _failed(ends, experiment.baseline_arm, seed):
        return None
    baseline = curves[experiment.baseline_arm, seed]
    return convergence.resolve_target(target, max(record.accuracy for record in baseline))


def _hit(rule: str, curve: Sequence[RoundRecord], target: float | None) -> RoundRecord | None:
    if target is None:
        return None
    reached = convergence.sustained_hit if rule == "sustained" else convergence.first_hit
    index = reached([record.accuracy for record in curve], target)
    return None if index is None else curve[index]


def _run(
    experiment: Experiment,
    curve: Sequence[RoundRecord],
    target: Target,
    accuracy: float | None,
    outcome: Outcome,
) -> RunEntry:
    rounds, accuracies = experiment.rounds, [record.accuracy for record in curve]
    first, sustained = (_hit(rule, curve, accuracy) for rule in ("first", "sustained"))
    hit = sustained if rounds.rule == "sustained" else first
    return RunEntry(
        arm=curve[0].arm,
        seed=curve[0].seed,
        target=str(target),
        target_accuracy=accuracy,
        rule=rounds.rule,
        rounds_to_target=None if hit is None else hit.round,
        exchanges_to_target=None if hit is None else hit.exchanges,
        first_hit=None if first is None else _costs(first),
        sustained_hit=None if sustained is None else _costs(sustained),
        rounds_to_plateau=convergence.plateau(accuracies, rounds.plateau.rounds, rounds.plateau.min_delta),
        totals=_costs(curve[-1]),
        stopped=outcome.stopped,
        final_accuracy=accuracies[-1],
        best_accuracy=max(accuracies),
        weights_sha256=outcome.weights_sha256,
    )


def _costs(record: RoundRecord) -> CumulativeCosts:
    return CumulativeCosts.model_validate(record, from_attributes=True)


def _compare(
    experiment: Experiment,
    curves: Curves,
    ends: Ends,
    arm: str,
    target: Target,
    cost: Cost,
) -> ComparisonEntry:
    """Compare an arm with the baseline over the seeds in which both ran; a failed run is no miss."""
    pairs, failed = [], 0
    for seed in experiment.seeds:
        baseline, other = curves.get((experiment.baseline_arm, seed)), curves.get((arm, seed))
        accuracy = _accuracy(experiment, curves, ends, seed, target)
        if baseline is None or other is None or accuracy is None:
            failed += 1
            continue
        reached = _hit(experiment.rounds.rule, baseline, accuracy)
        hit = _hit(experiment.rounds.rule, other, accuracy)
        if (reached is None and _failed(ends, experiment.baseline_arm, seed)) or (
            hit is None and _failed(ends, arm, seed)
        ):
            failed += 1
            continue
        pairs.append(
            PairedRuns(
                baseline=None if reached is None else _cost(reached, cost),
                arm=_cost_of_miss(other, cost, experiment.rounds.max) if hit is None else _cost(hit, cost),
                arm_missed=hit is None,
            )
        )
    return ComparisonEntry.model_validate(
        {
            "baseline": experiment.baseline_arm,
            "arm": arm,
            "target": str(target),
            "rule": experiment.rounds.rule,
            "cost": cost,
            **compare(pairs),
            "failed": failed,
        }
    )


def _failed(ends: Ends, arm: str, seed: int) -> bool:
    return (arm, seed) not in ends or ends[arm, seed].stopped in ("failed", "interrupted")


def _cost(record: RoundRecord, cost: str) -> int:
    if cost == "bytes":
        return record.bytes_up + record.bytes_down
    return int(getattr(record, "round" if cost == "rounds" else cost))


def _cost_of_miss(curve: Sequence[RoundRecord], cost: str, rounds: int) -> float | None:
    """Return the cost of the start plus ``rounds + 1`` rounds at the mean cost of those that were run.

    A miss therefore counts as ``rounds + 1`` rounds, and as many exchanges plus the teachers'. None where no
    round was run, so that nobody knows what one costs.
    """
    start = _cost(curve[0], cost)
    if cost in ("rounds", "exchanges"):
        return start + rounds + 1
    run = curve[-1].round
    return start + (rounds + 1) * (_cost(curve[-1], cost) - start) / run if run else None
