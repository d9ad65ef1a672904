"""Successive halving: every candidate runs a few rounds, the better ones run longer, the best one wins."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from statistics import fmean, median
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from kdfed.config import Arm, Experiment
from kdfed.errors import RunError, RunFolderError
from kdfed.named import search_in
from kdfed.records import write_atomically
from simulations.engines.process_state import preserved
from simulations.experiments import build_experiment
from simulations.tuning.cache import read_result, trial_key, write_result
from simulations.tuning.checks import Plan
from simulations.tuning.horizon import horizon_of, until_flat
from simulations.tuning.objective import Curves, kept, levels, ranked
from simulations.tuning.output import Row, Winner, tuned_text, winners_table, write_trials
from simulations.tuning.space import (
    Candidate,
    alone,
    candidates,
    every_trial,
    order,
    with_changes,
    with_shared,
)
from simulations.tuning.trial import TrialResult, UntilFlat, run_trial, tuning_majority
from simulations.workers import check_folder, cores, progress_on, run_all, worker_pool


@dataclass(frozen=True)
class Trial:
    """What a worker runs.

    Parameters
    ----------
    experiment
        Of one arm, resolved, as JSON values.
    folder
        Of the experiment file, whose modules it can name.
    name, seed, rounds, share, until
        See :func:`simulations.tuning.trial.run_trial`.
    """

    experiment: Mapping[str, Any]
    folder: Path | None
    name: str
    seed: int
    rounds: int
    share: float
    until: UntilFlat | None = None

    @property
    def key(self) -> str:
        """Where its result is kept."""
        return trial_key(self._read(), self.name, self.seed, self.rounds, self.share, self.until)

    def run(self) -> TrialResult:
        """Run it in this process."""
        return run_trial(self._read(), self.name, self.seed, self.rounds, self.share, self.until)

    def _read(self) -> Experiment:
        experiment = build_experiment(self.experiment)
        return experiment if self.folder is None else experiment.found_in(self.folder)


@preserved()
def run_tuning(
    plan: Plan,
    out: Path,
    *,
    workers: int | None = None,
    console: Console | None = None,
    command: str = "kdfed tune",
) -> Sequence[Winner]:
    """Tune every arm of a plan, the baseline first, and write ``trials.csv`` and ``tuned.yaml``.

    Parameters
    ----------
    plan
        Checked already.
    out
        The folder; its ``cache`` may hold trials that an earlier call has finished.
    workers
        Processes. Default: the cores that are there.
    console
        Where to print how much there is to do, how far it is, and what came of it.
    command
        What was typed, for the comment in ``tuned.yaml``.

    Returns
    -------
    sequence of Winner
        What each arm ends with.

    Raises
    ------
    ConfigError
        If the folder cannot be written to; nothing was run then.
    RunError
        If every candidate of an arm failed, a worker died, or the disk is full. Finished trials stay.
    """
    console = console or Console(quiet=True)
    torch.set_num_threads(1)
    workers = workers or cores()
    check_folder(out / "cache")
    folder, store = plan.experiment.folder, out / "store"
    store.mkdir(exist_ok=True)
    try:
        with progress_on(console) as progress, worker_pool(workers, _begin, folder, store) as pool:
            return _Tuning(plan, out, pool, progress, workers).run(command)
    except RunFolderError as error:  # it could be written to when it began
        raise RunError(str(error)) from error
    finally:
        rmtree(store, ignore_errors=True)  # workers that are ended leave what participants kept


@dataclass
class _Tuning:
    """One call of :func:`run_tuning`."""

    plan: Plan
    out: Path
    pool: ProcessPoolExecutor
    progress: Progress
    workers: int
    rows: list[Row] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)

    def run(self, command: str) -> list[Winner]:
        plan, tuning, baseline = self.plan, self.plan.tuning, self.plan.experiment.baseline_arm
        values, winners = dict(plan.values), list[Winner]()
        total = every_trial(tuning)
        reference: Curves | None = None
        for name in order(tuning, baseline):
            own = tuning.by_hand.get(name, 0)
            found = candidates(values, name, tuning.arms[name], tuning.seeds[0], total - own)
            if len(found) < total - own:
                self.progress.console.print(
                    f"{name}: its space has {len(found)} points, fewer than {total - own}"
                )
            if name == baseline:
                total = len(found) + own
            cold = name == baseline or plan.experiment.arm(name).start == "random"
            winner, curves = self._halve(values, name, found, None if cold else reference)
            winners.append(winner)
            values = with_changes(values, name, winner.changes)
            if name == baseline:
                values, reference = with_shared(values, name), curves
        horizon, why = horizon_of(plan.experiment, self._flat(values, baseline))
        text = tuned_text(values, horizon, why, tuning, winners, command)
        write_atomically(self.out / "tuned.yaml", text.encode(errors="backslashreplace"))
        self.progress.stop()
        self.progress.console.print(
            "", winners_table(winners, tuning), f"horizon: {horizon} rounds, {why}", sep="\n"
        )
        return winners

    def _halve(
        self,
        values: Mapping[str, Any],
        name: str,
        alive: Sequence[Candidate],
        reference: Curves | None,
    ) -> tuple[Winner, Curves]:
        """Run the rungs of one arm; return the winner, and its curves."""
        tuning, count = self.plan.tuning, len(alive)
        majority = tuning_majority(self.plan.experiment.data, tuning.examples)
        for rung, rounds in enumerate(tuning.rungs, start=1):
            last = rung == len(tuning.rungs)
            results = self._results(f"{name}, {rounds} rounds", values, name, alive, rounds)
            curves = [
                {seed: one.curve for seed, one in result.items() if one.curve is not None}
                for result in results
            ]
            judges = curves if reference is None else [{s: c.until(rounds) for s, c in reference.items()}]
            level = levels(judges, tuning.seeds, tuning.target, majority)
            places = ranked(curves, level, tuning.seeds)[: 1 if last else kept(len(alive), tuning.keep)]
            places = [place for place in places if len(curves[place]) == len(tuning.seeds)]
            self._note(name, alive, results, rung, rounds, level, places)
            if not places:
                reasons = [one.reason for result in results for one in result.values() if one.reason]
                raise RunError(f"tuning: every candidate of {name!r} failed; the first: {reasons[0]}")
            alive, chosen = [alive[place] for place in places], curves[places[0]]
        costs = [chosen[seed].cost(level[seed]) for seed in tuning.seeds]
        converged = fmean(chosen[seed].converged for seed in tuning.seeds)
        winner = Winner(name, alive[0].number, alive[0].changes, count, median(costs), converged)
        return winner, chosen

    def _results(
        self, title: str, values: Mapping[str, Any], name: str, alive: Sequence[Candidate], rounds: int
    ) -> list[dict[int, TrialResult]]:
        """Run every candidate with every tuning seed."""
        tuning, trials = self.plan.tuning, list[Trial]()
        for candidate in alive:
            experiment = alone(with_changes(values, name, candidate.changes), name).model_dump(mode="json")
            for seed in tuning.seeds:
                trials.append(
                    Trial(experiment, self.plan.experiment.folder, name, seed, rounds, tuning.examples)
                )
        done = self._run(title, trials)
        per = len(tuning.seeds)
        return [
            dict(zip(tuning.seeds, done[place * per : (place + 1) * per], strict=True))
            for place in range(len(alive))
        ]

    def _flat(self, values: Mapping[str, Any], baseline: str) -> dict[int, tuple[float, ...]]:
        """Run the tuned baseline until it is flat."""
        tuning, experiment = self.plan.tuning, self.plan.experiment
        resolved = alone(values, baseline).model_dump(mode="json")
        until = until_flat(experiment)
        trials = [
            Trial(resolved, experiment.folder, baseline, seed, tuning.longest, tuning.examples, until)
            for seed in tuning.seeds
        ]
        results = self._run(f"{baseline}, until it is flat", trials)
        for seed, result in zip(tuning.seeds, results, strict=True):
            if result.curve is None:
                raise RunError(f"horizon: {baseline!r} failed with tuning seed {seed}: {result.reason}")
        return {
            s: r.curve.accuracies for s, r in zip(tuning.seeds, results, strict=True) if r.curve is not None
        }

    def _run(self, title: str, trials: Sequence[Trial]) -> list[TrialResult]:
        """Return the results of trials, in their order; those that are kept are not run again."""
        cache = self.out / "cache"
        keys = [trial.key for trial in trials]
        results = {key: read_result(cache, key) for key in keys}
        missing = {key: trial for key, trial in zip(keys, trials, strict=True) if results[key] is None}
        bar = self.progress.add_task(title, total=len(trials), completed=len(trials) - len(missing))

        def done(arguments: tuple[Any, ...], result: TrialResult) -> None:
            trial, key = arguments
            results[key] = result
            if result.lasting:
                write_result(cache, key, result)
            self.progress.advance(bar)
            self._estimate(trial, result)

        run_all(self.pool, _work, [(trial, key) for key, trial in missing.items()], done)
        found = [results[key] for key in keys]
        return [result for result in found if result is not None]

    def _estimate(self, trial: Trial, result: TrialResult) -> None:
        """Say once how long everything may take, by each worker's second trial: the first warms it up."""
        if result.curve is None:
            return
        self.measured.append(result.seconds / _effort(self.plan.experiment.arm(trial.name), trial.rounds))
        if len(self.measured) != 2 * self.workers:
            return
        tuning = self.plan.tuning
        work = 0.0
        for name in tuning.arms:
            arm, count = self.plan.experiment.arm(name), every_trial(tuning) - tuning.by_hand.get(name, 0)
            for rounds in tuning.rungs:
                work += count * len(tuning.seeds) * _effort(arm, rounds)
                count = kept(count, tuning.keep)
        minutes = fmean(self.measured[self.workers :]) * work / self.workers / 60
        self.progress.console.print(f"about {minutes:.1f} minutes for all trials")

    def _note(
        self,
        name: str,
        alive: Sequence[Candidate],
        results: Sequence[Mapping[int, TrialResult]],
        rung: int,
        rounds: int,
        level: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        """Add a rung to ``trials.csv``."""
        for place, (candidate, result) in enumerate(zip(alive, results, strict=True)):
            for seed, one in result.items():
                cost = None if one.curve is None else one.curve.cost(level[seed])
                self.rows.append(
                    Row(
                        arm=name,
                        candidate=candidate.number,
                        settings=json.dumps(candidate.changes),
                        seed=seed,
                        rung=rung,
                        rounds=rounds,
                        target_accuracy=level.get(seed),
                        exchanges_to_target=None if cost is None or math.isinf(cost) else round(cost),
                        converged_accuracy=None if one.curve is None else one.curve.converged,
                        kept="yes" if place in places else "no",
                        reason=one.reason,
                    )
                )
        write_trials(self.out / "trials.csv", self.rows)


def _effort(arm: Arm, rounds: int) -> float:
    """Return how long a trial takes against others, in passes over local data; the teachers' included."""
    taught = arm.start in ("consolidated", "averaged") and arm.teachers.from_ is None
    return rounds * (arm.local.epochs + 0.5) + (arm.teachers.epochs if taught else 0)


# ----------------------------------------------------------------------------- in a worker


def _begin(folder: Path | None, store: Path) -> None:
    torch.set_num_threads(1)
    tempfile.tempdir = str(store)
    for name in ("flwr", "kdfed"):  # why a trial fails is in its result
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if folder is not None:
        search_in(folder)


def _work(trial: Trial, key: str) -> TrialResult:
    return trial.run()
