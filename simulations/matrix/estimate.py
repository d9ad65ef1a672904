"""How long the jobs of a matrix take: by what is recorded of others, else by one round of each arm.

An arm's seconds are ``start + rounds * horizon``. A round is timed on the cell's own data, from random
weights, with its evaluation. What comes before the first round is not run: the local steps of the teachers,
and the steps of a distillation, are taken to cost what a local step of that round cost.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import monotonic, process_time
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord
from pydantic import TypeAdapter, ValidationError

from clients.client_app import app as client_app
from kdfed.config import Arm, Experiment
from kdfed.data import prepare
from kdfed.device import resolve_device
from kdfed.messages import Simulation
from kdfed.named import ends_program
from kdfed.partition import partition_of
from kdfed.records import write_atomically
from kdfed.saved import Card
from simulations.engines.in_process_grid import InProcessGrid
from simulations.engines.process_state import preserved
from simulations.matrix.jobs import CellState, Note
from simulations.matrix.settings import Cell
from simulations.server_data import held_out_data, server_data
from strategies.arm import initial_state
from strategies.arm_config import ArmConfig
from strategies.catalogue import make_strategy
from strategies.pre_consolidation import PreConsolidation


@dataclass(frozen=True)
class Estimate:
    """How long the jobs of a cell take.

    Parameters
    ----------
    arms
        Seconds of each arm in one job.
    measured
        How many jobs they are the mean of; 0 where they were estimated.
    busy
        CPU seconds a second: below 1 where others use the machine, too. None where nobody noted them.
    """

    arms: Mapping[str, float]
    measured: int = 0
    busy: float | None = None

    @property
    def job(self) -> float:
        """Seconds of a job that begins anew."""
        return math.fsum(self.arms.values())


_ESTIMATE = TypeAdapter(Estimate)


def measured(state: CellState, notes: Mapping[str, Note]) -> Estimate | None:
    """Return the mean of what finished arms took; None where an arm of the cell finished in no seed."""
    recorded = [job.seconds for job in state.jobs.values()]
    took = {
        name: [seconds[name] for seconds in recorded if name in seconds]
        for name in state.cell.experiment.arm_order
    }
    if not all(took.values()):
        return None
    noted = [
        (notes[f"{state.cell.name}/{seed}"].cpu_seconds, math.fsum(job.seconds.values()))
        for seed, job in state.jobs.items()
        if job.state == "done" and f"{state.cell.name}/{seed}" in notes
    ]
    spent, passed = (math.fsum(column) for column in zip(*noted, strict=True)) if noted else (0.0, 0.0)
    busy = spent / passed if passed else None
    return Estimate({name: fmean(own) for name, own in took.items()}, min(map(len, took.values())), busy)


def remaining(state: CellState, estimate: Estimate, seed: int) -> float:
    """Return the seconds that a job still takes: those of the arms that did not finish."""
    finished = state.jobs[seed].seconds
    return math.fsum(seconds for arm, seconds in estimate.arms.items() if arm not in finished)


# ----------------------------------------------------------------------------- before anything is recorded


def kept(out: Path, cell: Cell) -> Estimate | None:
    """Return an estimate that an earlier command made of a cell; None where there is none."""
    try:
        return _ESTIMATE.validate_json(_file(out, cell).read_bytes())
    except (OSError, ValidationError):
        return None


def keep(out: Path, cell: Cell, made: Estimate) -> None:
    """Keep an estimate for the next command."""
    write_atomically(_file(out, cell), _ESTIMATE.dump_json(made))


def _file(out: Path, cell: Cell) -> Path:
    """Return where the estimate of a cell lies; its name is a hash of the experiment, but for its seeds."""
    values = cell.experiment.model_dump(mode="json") | {"seeds": []}
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    return out / ".kdfed" / "estimates" / f"{cell.name}-{key}.json"


def time_cell(experiment: Experiment) -> Estimate:
    """Return how long each arm takes, by one round of it in this process.

    Parameters
    ----------
    experiment
        Of a cell; its first seed is used.
    """
    arms: dict[str, float] = {}
    began, spent = monotonic(), process_time()
    for name in experiment.arm_order:
        arm = experiment.arm(name)
        timed = time_round(experiment, arm)
        step = timed.seconds / max(1, timed.steps)
        start = timed.before + step * steps_of_start(experiment, arm)
        arms[name] = start + timed.seconds * experiment.horizon
    return Estimate(arms, 0, (process_time() - spent) / (monotonic() - began))


class Timed(NamedTuple):
    """Seconds before the first round, seconds of a round, and its local steps."""

    before: float
    seconds: float
    steps: int


def time_round(experiment: Experiment, arm: Arm) -> Timed:
    """Run two rounds of an arm from random weights, and time the second: the first one warms up.

    An arm that cannot go on takes no time here; its run will tell.
    """
    seed = experiment.seeds[0]
    cold = arm.model_copy(update={"start": "random", "closed_form": None, "listeners": ()})
    data = prepare(experiment.data)
    with preserved(), tempfile.TemporaryDirectory(prefix="kdfed-matrix-") as store:
        torch.set_num_threads(experiment.threads)
        device = resolve_device(arm.device) if arm.model.reads else "cpu"
        config = ArmConfig(
            arm=cold,
            data=server_data(data, arm.model, device),
            held_out=held_out_data(data, arm.model, device),
            seed=seed,
            name="timed",
            never_stop=True,
            simulation=Simulation.of(cold, seed, Path(store), experiment.folder),
            card=Card.of(arm.model, arm.data, data),
        )
        try:
            start = ArrayRecord(dict(initial_state(cold, config.data, seed)))
            result = PreConsolidation(make_strategy(config), config).start(
                InProcessGrid(client_app, 1), start, 2, cold.server.deadlines.train
            )
        except (Exception, SystemExit) as error:
            if ends_program(error):
                raise
            return Timed(0.0, 0.0, 0)
    zero, first, last = result.records
    return Timed(zero.seconds, last.seconds - first.seconds, last.local_steps - first.local_steps)


def steps_of_start(experiment: Experiment, arm: Arm) -> float:
    """Return about how many local steps of an arm's rounds its start takes as long as.

    A step of another batch size counts by its examples. A distillation trains the student on the transfer
    split, and asks each teacher once, which takes a third of a training step.
    """
    data = prepare(experiment.data)
    shown = 0.0  # examples that are trained on
    if arm.start in ("consolidated", "averaged") and arm.teachers.from_ is None:
        sizes = [len(own) for own in partition_of(data, arm.partition, experiment.seeds[0]).indices]
        count = len(sizes) if arm.teachers.count == "all" else arm.teachers.count
        shown += arm.teachers.epochs * fmean(sizes) * count
    if arm.start == "consolidated":
        teachers = arm.partition.participants if arm.teachers.count == "all" else arm.teachers.count
        shown += len(data.splits.transfer) * (getattr(arm.consolidation, "epochs", 0) + teachers / 3)
    if arm.start == "server":
        shown += len(data.splits.validation) * arm.server_fit.epochs
    return shown / arm.local.batch_size
