"""Running a matrix: what is missing, the cheapest cells first, in parallel processes; then what they say."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from kdfed.config import Experiment
from kdfed.errors import RunError, RunFolderError
from kdfed.records.lock import FolderLock
from simulations.engines.process_state import preserved
from simulations.experiments import build_experiment
from simulations.matrix import estimate, jobs
from simulations.matrix.estimate import Estimate, measured, remaining
from simulations.matrix.jobs import CellState, JobOrder, join, look_up
from simulations.matrix.records import write_matrix
from simulations.matrix.settings import Cell, Matrix
from simulations.matrix.tables import estimate_table
from simulations.progress import format_seconds
from simulations.report.words import plural
from simulations.workers import Runner, check_folder, cores, runner


@dataclass(frozen=True)
class Request:
    """What is asked of a matrix.

    Parameters
    ----------
    seeds
        Which jobs: seeds by cell.
    workers
        Processes.
    engine, nodes
        What runs a job.
    minutes
        No job starts that would not end within so many minutes. Default: all of them start.
    estimate_only
        Whether nothing is run.
    """

    seeds: Mapping[str, Sequence[int]]
    workers: int = 1
    engine: str = "inprocess"
    nodes: int = 1
    minutes: float | None = None
    estimate_only: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Parameters
    ----------
    left
        Jobs that were asked for and not started, because they would not have ended in time.
    failed
        Why jobs failed, one line each.
    """

    left: Sequence[str] = ()
    failed: Sequence[str] = ()


def default_workers(matrix: Matrix, engine: str) -> int:
    """Return how many jobs run beside each other, each on the threads of its experiment."""
    if engine != "inprocess":
        return 1
    return max(1, cores() // max(cell.experiment.threads for cell in matrix.cells))


@preserved()
def run_matrix(matrix: Matrix, out: Path, request: Request, console: Console | None = None) -> Outcome:
    """Run what is missing, join cells whose jobs are all over, and write ``matrix.json``.

    Parameters
    ----------
    matrix
        Checked already.
    out
        The folder; finished jobs in it are not run again.
    request
        What is asked.
    console
        Where to print the estimate, and how far it is.

    Returns
    -------
    Outcome
        What was left, and what failed.

    Raises
    ------
    RunFolderError
        If the folder holds runs of other experiments, or cannot be written to; nothing was run then.
    RunError
        If a worker died, or the disk is full. What is finished stays.
    """
    began = time.monotonic()
    console = console or Console(quiet=True)
    torch.set_num_threads(1)
    check_folder(out / ".kdfed")
    lock = FolderLock(out / ".kdfed" / "lock")
    lock.take(0.0)
    try:
        jobs.wait_for_killed(out, request.seeds)
        states = {cell.name: look_up(out, cell) for cell in matrix.cells}
        jobs.check_begun(out, [state for name, state in states.items() if request.seeds.get(name)])
        running = _Running(matrix, out, request, console, states, began)
        try:
            return running.run()
        except RunFolderError as error:  # it could be written to when it began
            raise RunError(str(error)) from error
    finally:
        lock.release()


@dataclass
class _Running:
    """One call of :func:`run_matrix`."""

    matrix: Matrix
    out: Path
    request: Request
    console: Console
    states: dict[str, CellState]
    began: float
    estimates: dict[str, Estimate] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        missing = self._missing()
        folders = {cell.experiment.folder: None for cell in self.matrix.cells if cell.experiment.folder}
        self._join_all()
        if missing or self.request.estimate_only:
            with runner(self.request.workers, self.console, jobs.begin, list(folders)) as pool:
                self._estimate(pool)
                self.console.print(estimate_table(self.matrix.name, self._asked(), self.estimates))
                if not self.request.estimate_only:
                    self._run(pool)
        return Outcome(tuple(self.left), tuple(self.failed))

    def _missing(self) -> list[tuple[str, int]]:
        """Return the jobs that were asked for and are not done."""
        return [
            (name, seed)
            for name, seeds in self.request.seeds.items()
            for seed in seeds
            if self.states[name].jobs[seed].state != "done"
        ]

    # ------------------------------------------------------------------ the estimate

    def _asked(self) -> list[CellState]:
        """Return the cells that are asked for, in the order of the file."""
        return [state for name, state in self.states.items() if self.request.seeds.get(name)]

    def _estimate(self, pool: Runner) -> None:
        """Estimate these cells: by what is recorded, by what an earlier command estimated, or anew."""
        unknown: list[Cell] = []
        for state in self._asked():
            found = measured(state, jobs.notes_of(self.out)) or estimate.kept(self.out, state.cell)
            if found is None:
                unknown.append(state.cell)
            else:
                self.estimates[state.cell.name] = found

        def done(own: tuple[Any, ...], made: Estimate) -> None:
            cell = next(cell for cell in unknown if cell.name == own[0])
            self.estimates[cell.name] = made
            estimate.keep(self.out, cell, made)

        if unknown:
            asked = [
                (cell.name, cell.experiment.model_dump(mode="json"), cell.experiment.folder)
                for cell in unknown
            ]
            pool.run("timing a round of each arm", _time, asked, total=len(asked), done=done)

    def _ordered(self) -> list[tuple[str, int]]:
        """Return the missing jobs, those of the cells first that are soonest done."""
        missing = self._missing()
        left = {
            name: sum(self._seconds(name, seed) for other, seed in missing if other == name)
            for name, _ in missing
        }
        places = {cell.name: place for place, cell in enumerate(self.matrix.cells)}
        return sorted(missing, key=lambda job: (left[job[0]], places[job[0]]))

    def _seconds(self, name: str, seed: int) -> float:
        return remaining(self.states[name], self.estimates[name], seed)

    # ------------------------------------------------------------------ the jobs

    def _run(self, pool: Runner) -> None:
        ordered, asked = self._ordered(), sum(map(len, self.request.seeds.values()))
        begun: dict[str, float] = {}

        def starting() -> Iterator[tuple[JobOrder]]:
            orders = jobs.orders(self.out, self.states, ordered, self.request.engine, self.request.nodes)
            for order in orders:
                if self._fits(order.cell, order.seed):
                    begun[str(order)] = time.monotonic()
                    yield (order,)
                else:
                    self.left.append(str(order))

        def done(own: tuple[Any, ...], result: tuple[str, float]) -> None:
            (order,), (why, cpu_seconds) = own, result
            took = format_seconds(time.monotonic() - begun[str(order)])
            jobs.note(self.out, order.cell, order.seed, cpu_seconds)
            self._take(order, why, took)

        pool.run(
            "jobs",
            jobs.work,
            starting(),
            total=asked,
            finished=asked - len(ordered),
            done=done,
            at_once=self.request.workers,
        )

    def _fits(self, name: str, seed: int) -> bool:
        """Tell whether a job that starts now ends in time."""
        if self.request.minutes is None:
            return True
        return time.monotonic() - self.began + self._seconds(name, seed) <= 60 * self.request.minutes

    def _take(self, order: JobOrder, why: str, took: str) -> None:
        """Note what came of a job; join its cell where that was the last one."""
        name, cell = order.cell, self.states[order.cell].cell
        state = self.states[name] = look_up(self.out, cell)
        self.estimates[name] = measured(state, jobs.notes_of(self.out)) or self.estimates[name]
        told = f"{order}: {'failed' if why else 'done'} in {took}"
        if why:
            self.failed.append(f"{order}: {why}")
        if state.is_over:
            self._join(name)
            told += f"; {name} is complete"
        self.console.print(escape(told), highlight=False, soft_wrap=True)

    def _join_all(self) -> None:
        """Join every cell whose jobs are over, and say what all of them say."""
        for name, state in self.states.items():
            if state.is_over and not state.is_joined:
                self._join(name, write=False)
        write_matrix(self.out, self.matrix, self.states)

    def _join(self, name: str, write: bool = True) -> None:
        state = self.states[name]
        if not state.is_joined:
            join(self.out, state, self.request.engine)
            self.states[name] = CellState(state.cell, state.jobs, True)
        if write:
            write_matrix(self.out, self.matrix, self.states)


def left_words(outcome: Outcome, minutes: float) -> str:
    """Say which jobs were not started."""
    shown = ", ".join(outcome.left[:10]) + (", …" if outcome.left[10:] else "")
    return (
        f"{plural(len(outcome.left), 'job')} would not have ended within {minutes:g} minutes: {shown}. The "
        "same command goes on with them"
    )


# ----------------------------------------------------------------------------- in a worker


def _time(name: str, values: Mapping[str, Any], folder: Path | None) -> Estimate:
    experiment: Experiment = build_experiment(values)
    return estimate.time_cell(experiment if folder is None else experiment.found_in(folder))
