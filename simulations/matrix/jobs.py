"""The jobs of a matrix: one cell and one seed each, whose records are an ordinary run folder.

::

    <folder>/
    ├── runs/<cell>/<seed>/   the run folder of a job; `kdfed run` would have left the same
    ├── cells/<cell>/         the run folder of a cell, joined when all its jobs are done; without models
    ├── jobs.json             which code computed each job, and its CPU seconds
    ├── matrix.json
    └── matrix.html
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError

from kdfed.config import Experiment, model_paths, moved_models, written
from kdfed.errors import KdfedError, RunFolderError
from kdfed.events import ignore
from kdfed.named import search_in
from kdfed.records import Failure, Outcome, RoundRecord, RunFolder, write_atomically
from kdfed.records.lock import FolderLock
from kdfed.records.opening import changed_models
from kdfed.records.reading import PRIVATE, RecordedRun
from simulations import server_app
from simulations.experiments import build_experiment
from simulations.matrix.settings import Cell
from simulations.server_app import conclude
from simulations.study.hashes import code_sha256

State = Literal["new", "begun", "failed", "done"]
"""``failed``: it came to its end, and an arm could not go on. It is run again by the next command."""


def run_path(out: Path, cell: str, seed: int) -> Path:
    """Return where the run folder of a job lies."""
    return out / "runs" / cell / str(seed)


def cell_path(out: Path, cell: str) -> Path:
    """Return where the joined run folder of a cell lies."""
    return out / "cells" / cell


NOTES = "jobs.json"


@dataclass(frozen=True)
class Note:
    """What no run folder says of a job.

    Parameters
    ----------
    code
        Which code computed it: the first digits of a hash of the files of kdfed, clients, strategies, and of
        what runs arms.
    cpu_seconds
        That its worker spent, by the last command that ran a part of it; with another engine than inprocess,
        those of others are not among them.
    """

    code: str
    cpu_seconds: float


_NOTES = TypeAdapter(dict[str, Note])


def notes_of(out: Path) -> dict[str, Note]:
    """Return what is noted of jobs, by ``cell/seed``."""
    try:
        return _NOTES.validate_json((out / NOTES).read_bytes())
    except (OSError, ValidationError):
        return {}


def note(out: Path, cell: str, seed: int, cpu_seconds: float) -> None:
    """Note that this process's code computed a job.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    code = code_sha256((), ("kdfed", "clients", "strategies"), Path(server_app.__file__))[:12]
    noted = {**notes_of(out), f"{cell}/{seed}": Note(code, round(cpu_seconds, 1))}
    write_atomically(out / NOTES, _NOTES.dump_json(dict(sorted(noted.items())), indent=1))


@dataclass(frozen=True)
class Job:
    """One cell and one seed, and what is recorded of it.

    Parameters
    ----------
    cell, seed
        Which.
    state
        How far it is.
    records, outcomes, failures
        What is recorded, in the order of the experiment.
    """

    cell: Cell = field(compare=False)
    seed: int
    state: State = "new"
    records: tuple[RoundRecord, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether it came to its end, well or not."""
        return self.state in ("done", "failed")

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each arm took which finished."""
        finished = {outcome.arm for outcome in self.outcomes}
        return {record.arm: record.seconds for record in self.records if record.arm in finished}


@dataclass(frozen=True)
class CellState:
    """What is recorded of a cell.

    Parameters
    ----------
    cell
        Which.
    jobs
        By seed, in the order of the experiment.
    is_joined
        Whether its joined run folder holds all of them.
    """

    cell: Cell
    jobs: dict[int, Job] = field(default_factory=dict)
    is_joined: bool = False

    @property
    def is_over(self) -> bool:
        """Whether every job came to its end."""
        return all(job.is_over for job in self.jobs.values())


def look_up(out: Path, cell: Cell) -> CellState:
    """Find out what a matrix folder holds of a cell; nothing is changed.

    Raises
    ------
    RunFolderError
        If it holds runs of another experiment by the cell's name or with other files of models, or records
        that cannot be read.
    """
    joined, seeds = RecordedRun(cell_path(out, cell.name)), cell.experiment.seeds
    there: dict[int, Job] = {}
    whole = False
    if joined.experiment_file.exists() and joined.has_outcomes:
        recorded = joined.read_experiment()
        same_seeds = recorded.model_copy(update={"seeds": seeds})
        _refuse_other(joined, same_seeds, cell.experiment)
        _refuse_other_models(joined, same_seeds, cell.experiment)
        jobs = _jobs(joined, cell, [seed for seed in recorded.seeds if seed in seeds], recorded)
        there = {seed: job for seed, job in jobs.items() if job.is_over}
        whole = joined.has_summary and recorded.seeds == seeds
    found = {}
    for seed in seeds:
        run, alone = RecordedRun(run_path(out, cell.name, seed)), cell.alone(seed)
        if not (run.experiment_file.exists() and run.has_outcomes):
            found[seed] = there.get(seed) or Job(cell, seed)
            continue
        recorded = alone
        if run.experiment_file.read_bytes() != alone.to_yaml().encode():
            recorded = run.read_experiment()
            _refuse_other(run, recorded, alone)
        _refuse_other_models(run, recorded, alone)
        found |= _jobs(run, cell, [seed], alone)
    return CellState(cell, found, whole and found == there)


def _refuse_other(run: RecordedRun, recorded: Experiment, wanted: Experiment) -> None:
    if written(recorded, {}) != written(wanted, moved_models(recorded, wanted)):
        raise RunFolderError(
            f"{run.path} holds runs of another experiment than the cell {wanted.name!r} of the matrix file; "
            "rename the cell, choose another output folder (--out), or remove what is there"
        )


def _refuse_other_models(run: RecordedRun, recorded: Experiment, wanted: Experiment) -> None:
    if not model_paths(wanted):
        return
    problem = next(changed_models(run.read_outcomes(), recorded, wanted), None)
    if problem is not None:
        raise RunFolderError(
            f"{run.path} {problem}; put it back as it was, choose another output folder (--out), or remove "
            "what is there"
        )


def _jobs(run: RecordedRun, cell: Cell, seeds: Sequence[int], experiment: Experiment) -> dict[int, Job]:
    """Return what a run folder holds, by seed."""
    order = {arm: place for place, arm in enumerate(cell.experiment.arm_order)}
    records, outcomes = run.read_rounds(experiment), run.read_outcomes()
    counts = Counter((record.arm, record.seed) for record in records)
    failures = [Failure(**one) for one in (run.read_summary()["failures"] if run.has_summary else ())]
    jobs = {}
    for seed in seeds:
        ended = [
            one
            for one in outcomes
            if one.seed == seed and one.arm in order and one.evaluations == counts[one.arm, seed]
        ]
        finished = {one.arm for one in ended}
        failed = [one for one in failures if one.seed == seed and one.arm not in finished]
        state: State = "begun"
        if finished == set(order):
            state = "done"
        elif finished | {one.arm for one in failed} == set(order):
            state = "failed"
        own = [record for record in records if record.seed == seed]
        jobs[seed] = Job(
            cell,
            seed,
            state,
            tuple(sorted(own, key=lambda record: (order[record.arm], record.round))),
            tuple(sorted(ended, key=lambda one: order[one.arm])),
            tuple(sorted(failed, key=lambda one: order[one.arm])),
        )
    return jobs


def join(out: Path, state: CellState, engine: str) -> None:
    """Write the run folder of a cell whose jobs are all over: their lines, then its summary and report.

    Raises
    ------
    RunFolderError
        If something else stands in its place.
    RecordError
        If it cannot be written.
    """
    cell, jobs = state.cell, state.jobs.values()
    with RunFolder.open_for(cell_path(out, cell.name), cell.experiment, overwrite=True) as folder:
        folder.begin()
        folder.join(
            (record for job in jobs for record in job.records),
            (outcome for job in jobs for outcome in job.outcomes),
        )
        conclude(cell.experiment, folder, engine, [failure for job in jobs for failure in job.failures])


def wait_for_killed(out: Path, seeds: Mapping[str, Sequence[int]]) -> None:
    """Wait for workers of a command that was killed a moment ago: they let go of their jobs a little later.

    Raises
    ------
    RunFolderError
        If another process goes on writing to one of these jobs (seeds by cell).
    """
    for name, own in seeds.items():
        for seed in own:
            lock = FolderLock(run_path(out, name, seed) / PRIVATE / "lock")
            if lock.path.exists():
                lock.take(patience=10.0)
                lock.release()


def check_begun(out: Path, states: Sequence[CellState]) -> None:
    """Try to go on with every job that was begun, so that nothing is refused after an hour.

    Raises
    ------
    RunFolderError
        If one cannot be gone on with: another process writes there, or other versions made its records.
    """
    for state in states:
        for seed, job in state.jobs.items():
            if job.state in ("begun", "failed"):
                RunFolder.open_for(run_path(out, state.cell.name, seed), state.cell.alone(seed)).close()


# ----------------------------------------------------------------------------- in a worker


def begin(folders: Sequence[Path]) -> None:
    """Make a worker ready.

    Parameters
    ----------
    folders
        Where modules of the user's are looked for.
    """
    torch.set_num_threads(1)
    for name in ("flwr", "kdfed"):  # warnings and tracebacks are in the log of each run
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    for folder in folders:
        search_in(folder)


def work(job: JobOrder) -> tuple[str, float]:
    """Run a job; return why it failed, nothing where it did not, and the CPU seconds of this process."""
    experiment, began = job.read(), process_time()
    try:
        folder = RunFolder.open_for(job.path, experiment)
        more = {"report": False} if job.engine == "inprocess" else {}
        import_module(f"simulations.engines.{job.engine}").run(
            experiment, folder, nodes=job.nodes, on_event=ignore, **more
        )
    except KdfedError as error:
        return str(error), process_time() - began
    return "", process_time() - began


@dataclass(frozen=True, repr=False)
class JobOrder:
    """What a worker is told to run.

    Parameters
    ----------
    experiment
        With one seed, resolved, as JSON values.
    folder
        Of the matrix file, whose modules it can name.
    path
        Its run folder.
    engine, nodes
        What runs it.
    cell, seed
        Which job it is.
    """

    experiment: Mapping[str, Any]
    folder: Path | None
    path: Path
    engine: str
    nodes: int
    cell: str
    seed: int

    def read(self) -> Experiment:
        """Return the experiment."""
        experiment = build_experiment(self.experiment)
        return experiment if self.folder is None else experiment.found_in(self.folder)

    def __repr__(self) -> str:
        return f"{self.cell}, seed {self.seed}"


def orders(
    out: Path, states: Mapping[str, CellState], jobs: Sequence[tuple[str, int]], engine: str, nodes: int
) -> Iterator[JobOrder]:
    """Yield what workers are told of jobs."""
    for name, seed in jobs:
        cell = states[name].cell
        values = cell.alone(seed).model_dump(mode="json")
        yield JobOrder(values, cell.experiment.folder, run_path(out, name, seed), engine, nodes, name, seed)
