"""``summary.json``: hits, totals and comparisons, from the records of a run."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from kdfed import convergence
from kdfed.config import Experiment, Target, sunk_teachers
from kdfed.records.rounds import Failure, Outcome, RoundRecord, Stopped
from kdfed.records.schema import (
    COSTS,
    ComparisonEntry,
    ConsolidationEntry,
    ControlEntry,
    ControlName,
    Cost,
    CumulativeCosts,
    FailureEntry,
    HorizonEntry,
    PartitionEntry,
    RefitEntry,
    RunEntry,
    Summary,
    SunkEntry,
)
from kdfed.records.versions import versions
from kdfed.savings import (
    AT_LEAST_ONE,
    NOTHING,
    Comparison,
    Interval,
    Pair,
    Verdict,
    billed,
    compare,
    holm,
    verdict,
)
from kdfed.task import TASKS


@dataclass(frozen=True)
class DataFacts:
    """What the data say, and records do not.

    Parameters
    ----------
    evaluation_examples
        Examples of the evaluation split.
    majority
        Share of its largest class; 0 in a regression.
    server_labels
        Of the server's labels, how many the arms fit or choose with, controls left out.
    control_labels
        On how many the control ``server`` is fitted.
    """

    evaluation_examples: int
    majority: float
    server_labels: int
    control_labels: int


def summarise(
    experiment: Experiment,
    engine: str,
    records: Sequence[RoundRecord],
    outcomes: Sequence[Outcome],
    partitions: Sequence[Mapping[str, Any]] = (),
    failures: Sequence[Failure] = (),
    unfinished: Stopped = "failed",
    facts: DataFacts | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Sum up an experiment, finished or not.

    A run without an outcome did not finish. A run without a single evaluation has no entry. A target that
    is a share of what a baseline converges to that did not finish is unresolved: nobody reaches it, and
    nobody misses it.

    Parameters
    ----------
    experiment
        What was run; its horizon is known.
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
    facts
        Of the data. Default: they are not at hand, and targets that are shares of a gain are unresolved.
    note
        What a reader must know about these records.

    Returns
    -------
    dict
        What ``summary.json`` holds.
    """
    runs = _Runs(experiment, records, outcomes, failures, unfinished, facts)
    rounds = experiment.rounds
    summary = Summary(
        note=note,
        experiment=experiment.name,
        engine=engine,
        seeds=list(experiment.seeds),
        targets=[str(target) for target in experiment.counted_targets],
        metric=TASKS[experiment.data.task].metric,
        horizon=HorizonEntry(rounds=experiment.horizon, why=rounds.why or "given in the experiment"),
        evaluation_examples=None if facts is None else facts.evaluation_examples,
        majority=None if facts is None else facts.majority,
        server_labels=None if facts is None else facts.server_labels,
        versions={"python": platform.python_version(), **versions()},
        failures=[FailureEntry.model_validate(failure, from_attributes=True) for failure in failures],
        runs=[
            _run(runs, arm, seed, target)
            for arm in experiment.arm_order
            for seed in experiment.seeds
            for target in experiment.counted_targets
            if (arm, seed) in runs.curves
        ],
        comparisons=list(_comparisons(runs)),
        controls=_controls(runs),
        partitions=[PartitionEntry.model_validate(partition) for partition in partitions],
        consolidations=[
            ConsolidationEntry.model_validate(
                {"arm": outcome.arm, "seed": outcome.seed, **outcome.consolidation}
            )
            for outcome in outcomes
            if outcome.consolidation is not None
        ],
        refits=[
            RefitEntry.model_validate({"arm": outcome.arm, "seed": outcome.seed, **asdict(refit)})
            for outcome in outcomes
            for refit in outcome.refits
        ],
        recipes=dict(experiment.recipes),
        sunk=[
            SunkEntry.model_validate({"arm": name, "from": list(files)})
            for name, files in sunk_teachers(experiment).items()
        ],
    )
    return summary.model_dump(by_alias=True)


class _Runs:
    """Every run of an experiment: its curve, how it ended, and what it had to reach."""

    def __init__(
        self,
        experiment: Experiment,
        records: Sequence[RoundRecord],
        outcomes: Sequence[Outcome],
        failures: Sequence[Failure],
        unfinished: Stopped,
        facts: DataFacts | None,
    ) -> None:
        self.experiment, self.facts = experiment, facts
        self.curves: dict[tuple[str, int], list[RoundRecord]] = {}
        for record in records:
            self.curves.setdefault((record.arm, record.seed), []).append(record)
        self.ends = {key: Outcome(*key, unfinished, "") for key in self.curves}
        self.ends |= {(one.arm, one.seed): Outcome(one.arm, one.seed, "failed", "") for one in failures}
        self.ends |= {(outcome.arm, outcome.seed): outcome for outcome in outcomes}

    def accuracies(self, arm: str, seed: int) -> list[float]:
        return [record.accuracy for record in self.curves.get((arm, seed), ())]

    def failed(self, arm: str, seed: int) -> bool:
        return (arm, seed) not in self.ends or self.ends[arm, seed].stopped in ("failed", "interrupted")

    def finished(self, arm: str, seed: int) -> bool:
        """Whether a run got to the horizon."""
        curve = self.curves.get((arm, seed), ())
        return len(curve) > self.experiment.horizon and not self.failed(arm, seed)

    def converged(self, arm: str, seed: int) -> float | None:
        """Return what a run converges to; None for one that did not get to the horizon."""
        return convergence.converged(self.accuracies(arm, seed)) if self.finished(arm, seed) else None

    def accuracy(self, seed: int, target: Target) -> float | None:
        """Return the accuracy to reach, None where it is a share of what was never measured."""
        if not isinstance(target, str):
            return convergence.resolve_target(target, math.nan)
        reached = self.converged(self.experiment.baseline_arm, seed)
        if reached is None or (self.facts is None and target.endswith("gain")):
            return None
        return convergence.resolve_target(target, reached, 0.0 if self.facts is None else self.facts.majority)

    def hit(self, arm: str, seed: int, target: Target) -> RoundRecord | None:
        accuracy = self.accuracy(seed, target)
        found = None if accuracy is None else convergence.hit(self.accuracies(arm, seed), accuracy)
        return None if found is None else self.curves[arm, seed][found]

    def is_open(self, arm: str, seed: int, target: Target) -> bool:
        """Whether a run says nothing of a target: it failed, or ended before the horizon without a hit.

        One that failed after its hit says nothing either: only the quick ones would be left.
        """
        if self.accuracy(seed, target) is None or self.failed(arm, seed) or (arm, seed) not in self.curves:
            return True
        return self.hit(arm, seed, target) is None and not self.finished(arm, seed)


def _run(runs: _Runs, arm: str, seed: int, target: Target) -> RunEntry:
    curve, flat = runs.curves[arm, seed], runs.experiment.rounds.plateau
    accuracies, accuracy = runs.accuracies(arm, seed), runs.accuracy(seed, target)
    hit, outcome = runs.hit(arm, seed, target), runs.ends[arm, seed]
    first = None if accuracy is None else convergence.first_hit(accuracies, accuracy)
    settled = runs.hit(arm, seed, convergence.CONVERGENCE)
    plateau, half, double = (
        convergence.plateau(accuracies, flat.rounds, factor * flat.min_delta) for factor in (1, 0.5, 2)
    )
    return RunEntry(
        arm=arm,
        seed=seed,
        target=str(target),
        target_accuracy=accuracy,
        rounds_to_target=None if hit is None else hit.round,
        exchanges_to_target=None if hit is None else hit.exchanges,
        hit=None if hit is None else _costs(hit),
        first_hit=None if first is None else _costs(curve[first]),
        rounds_to_convergence=None if settled is None else settled.round,
        plateau=plateau,
        plateau_half=half,
        plateau_double=double,
        totals=_costs(curve[-1]),
        stopped=outcome.stopped,
        final_accuracy=accuracies[-1],
        converged_accuracy=runs.converged(arm, seed),
        best_accuracy=max(accuracies),
        weights_sha256=outcome.weights_sha256,
    )


def _costs(record: RoundRecord) -> CumulativeCosts:
    return CumulativeCosts.model_validate(record, from_attributes=True)


# ----------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class _Cell:
    """An arm on its way to a target, by one cost."""

    arm: str
    target: Target
    cost: Cost
    pairs: tuple[Pair, ...]
    without_federation: int
    failed: int
    found: Comparison
    ceiling: float | None


def _comparisons(runs: _Runs) -> Iterable[ComparisonEntry]:
    """Compare every arm with the baseline; verdicts of one cost hold together (Holm)."""
    experiment = runs.experiment
    costs = {
        target: (*COSTS, "rounds_to_convergence") if target == convergence.CONVERGENCE else COSTS
        for target in experiment.counted_targets
    }
    cells = [
        _cell(runs, arm, target, cost)
        for arm in experiment.arm_order[1:]
        for target in experiment.counted_targets
        for cost in costs[target]
    ]
    significant: dict[int, bool] = {}
    for cost in dict.fromkeys(cell.cost for cell in cells):
        judged = [i for i, c in enumerate(cells) if c.cost == cost and c.arm not in experiment.controls]
        rejected = holm([cells[index].found.p_value for index in judged])
        significant |= dict(zip(judged, rejected, strict=True))
    for index, cell in enumerate(cells):
        said: Verdict | None = None
        if index in significant:
            said = verdict(cell.found, significant[index], _accuracy_lost(runs, cell.arm))
        yield _comparison(experiment, cell, said)


def _cell(runs: _Runs, arm: str, target: Target, cost: Cost) -> _Cell:
    """Pair the seeds in which both ran to the horizon; a failed run is no miss."""
    baseline = runs.experiment.baseline_arm
    pairs: list[Pair] = []
    free = failed = 0
    for seed in runs.experiment.seeds:
        if runs.is_open(baseline, seed, target) or runs.is_open(arm, seed, target):
            failed += 1
            continue
        theirs, ours = runs.hit(baseline, seed, target), runs.hit(arm, seed, target)
        if ours is not None and ours.exchanges == 0:
            free += 1
            continue
        pairs.append(Pair(*(None if hit is None else billed(vars(hit), cost) for hit in (theirs, ours))))
    found = compare(pairs) if pairs else NOTHING
    return _Cell(arm, target, cost, tuple(pairs), free, failed, found, _ceiling(runs, target, cost))


def _ceiling(runs: _Runs, target: Target, cost: Cost) -> float | None:
    """Return what an arm that needs one exchange would save, counted as any arm is; None without a hit."""
    if cost not in AT_LEAST_ONE:
        return None
    baseline, seeds = runs.experiment.baseline_arm, runs.experiment.seeds
    hits = [runs.hit(baseline, seed, target) for seed in seeds if not runs.is_open(baseline, seed, target)]
    if not any(hits):
        return None
    saved = compare([Pair(None if hit is None else billed(vars(hit), cost), 1) for hit in hits]).saved
    return None if saved is None else saved.median


def _accuracy_lost(runs: _Runs, arm: str) -> float | None:
    """Return how far an arm converges below the baseline, the mean over the seeds in which both finished."""
    both = [
        (runs.converged(runs.experiment.baseline_arm, seed), runs.converged(arm, seed))
        for seed in runs.experiment.seeds
    ]
    return mean_lost(both)


def mean_lost(converged: Iterable[tuple[float | None, float | None]]) -> float | None:
    """Return how far the second of two arms converges below the first, the mean over pairs of both."""
    lost = [theirs - ours for theirs, ours in converged if theirs is not None and ours is not None]
    return fmean(lost) if lost else None


def _comparison(experiment: Experiment, cell: _Cell, said: Verdict | None) -> ComparisonEntry:
    return comparison_entry(
        cell.found,
        cell.pairs,
        said,
        baseline=experiment.baseline_arm,
        arm=cell.arm,
        target=str(cell.target),
        cost=cell.cost,
        ceiling_percent=cell.ceiling,
        without_federation=cell.without_federation,
        failed=cell.failed,
    )


def comparison_entry(
    found: Comparison, pairs: Collection[Pair], said: Verdict | None, **named: Any
) -> ComparisonEntry:
    """Return what a comparison says.

    Parameters
    ----------
    found, pairs
        The comparison, and what it was made of.
    said
        Its verdict; None where it has none.
    named
        The entry's other fields, by name.
    """
    saved, mean = found.saved, found.mean
    missed = {
        "baseline": sum(pair.baseline is None and pair.arm is not None for pair in pairs),
        "arm": sum(pair.baseline is not None and pair.arm is None for pair in pairs),
        "both": sum(pair.both_missed for pair in pairs),
    }
    return ComparisonEntry.model_validate(
        {
            "saved_percent": None if saved is None else _bounded(saved),
            "ratio": None
            if mean is None
            else dict(zip(("geometric_mean", "low", "high"), mean, strict=True)),
            "verdict": said,
            "p_value": found.p_value,
            "pairs": len(pairs),
            "censored": missed,
            **named,
        }
    )


def _bounded(saved: Interval) -> dict[str, float | None]:
    """Return an interval as JSON can hold it: what has no bound is null."""
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in vars(saved).items()
    }


# ----------------------------------------------------------------------------- controls


def _controls(runs: _Runs) -> dict[ControlName, ControlEntry]:
    """Return what became of the controls, whether they were run or not."""
    experiment = runs.experiment
    starts = {arm: experiment.arm(arm).start for arm in experiment.arm_order}

    def found(name: str, is_it: Callable[[str], bool]) -> str | None:
        arms = (arm for arm in experiment.arm_order if arm in experiment.controls and arm == name)
        others = (arm for arm in experiment.arm_order if is_it(starts[arm]))
        return next(arms, None) or next(others, None)

    server = found("server", lambda start: start == "server")
    averaged = found("averaged", lambda start: start == "averaged")
    longer = found("longer", lambda start: False)
    labels = None if runs.facts is None or server is None else runs.facts.control_labels
    return {
        "server_alone": _control(runs, "server", server, labels, alone=True),
        "server_start": _control(runs, "server", server, labels),
        "averaged": _control(runs, "averaged", averaged, None),
        "longer": _control(runs, "longer", longer, None),
    }


def _control(
    runs: _Runs, name: str, arm: str | None, labels: int | None, *, alone: bool = False
) -> ControlEntry:
    if arm is None:
        return ControlEntry(
            arm=None,
            why=f"not run; add it with controls: [{name}]",
            labels=None,
            start_accuracy=None,
            converged_accuracy=None,
            test_accuracy=None,
        )
    seeds = runs.experiment.seeds
    curves = [runs.curves[arm, seed] for seed in seeds if (arm, seed) in runs.curves]
    converged = [runs.converged(arm, seed) for seed in seeds]
    return ControlEntry(
        arm=arm,
        why="",
        labels=labels,
        start_accuracy=_mean(curve[0].accuracy for curve in curves),
        converged_accuracy=None if alone else _mean(converged),
        test_accuracy=_mean(curve[0 if alone else -1].test_accuracy for curve in curves),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
