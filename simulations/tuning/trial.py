"""One trial: an arm is run with one tuning seed, and read on examples that nothing else sees.

The tuning examples are cut from what the participants hold otherwise. The evaluation and the test split are
the same as in a run, and nobody is given them: no accuracy on them is computed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from flwr.app import ArrayRecord

from clients.client_app import app as client_app
from kdfed import convergence
from kdfed.config import Arm, Experiment
from kdfed.data import Examples, PreparedData, prepare
from kdfed.data.splits import split
from kdfed.device import resolve_device
from kdfed.errors import KdfedError, one_line
from kdfed.events import Event
from kdfed.listeners import Listener, Round
from kdfed.messages import Simulation
from kdfed.named import ends_program
from kdfed.reading import examples_for
from kdfed.reasons import reason_of
from kdfed.saved import Card
from kdfed.settings import DataSettings, ModelSettings, RoundSettings
from simulations.engines.in_process_grid import InProcessGrid
from simulations.engines.process_state import preserved
from simulations.server_data import server_data
from simulations.tuning.objective import Curve
from strategies.arm import initial_state
from strategies.arm_config import ArmConfig, HeldOut, ServerData
from strategies.catalogue import make_strategy
from strategies.pre_consolidation import PreConsolidation


@dataclass(frozen=True)
class TrialResult:
    """What came of a trial.

    Parameters
    ----------
    curve
        None where the arm could not go on.
    reason
        Why it could not; empty where it could.
    seconds
        That it took.
    lasting
        Whether another try would end like this one: what failed otherwise (a full disk) is tried again.
    """

    curve: Curve | None
    reason: str = ""
    seconds: float = 0.0
    lasting: bool = True


@dataclass(frozen=True)
class UntilFlat:
    """Ends a trial where its curve is flat.

    Parameters
    ----------
    rounds, min_delta
        When it is: see :func:`kdfed.convergence.plateau`.
    """

    rounds: int
    min_delta: float


def tuning_settings(data: DataSettings, share: float) -> DataSettings:
    """Return the data of trials: the tuning examples stand in the validation split, behind its own."""
    validation = data.splits.validation + share
    return data.model_copy(update={"splits": data.splits.model_copy(update={"validation": validation})})


def tuning_majority(data: DataSettings, share: float) -> float:
    """Return the share of the largest class among the tuning examples; see :func:`tuning_data`."""
    prepared, _, extra = _tuning_splits(data, share)
    return prepared.majority(extra)


def tuning_data(data: DataSettings, share: float, arm: Arm) -> tuple[ServerData, Examples]:
    """Return what the server holds in a trial, and the tuning examples, as an arm's model reads them.

    Parameters
    ----------
    data
        The experiment's.
    share
        Of all examples, those on which candidates are compared.
    arm
        Whose model it is, and where a frozen part is computed.

    Raises
    ------
    DataError
        If the data cannot be read, or there are too few.
    """
    return _tuning_data(data, share, arm.model.model_dump_json(), arm.device if arm.model.reads else "cpu")


@lru_cache(maxsize=2)
def _tuning_data(data: DataSettings, share: float, model: str, device: str) -> tuple[ServerData, Examples]:
    prepared, theirs, extra = _tuning_splits(data, share)
    settings, where = ModelSettings.model_validate_json(model), resolve_device(device)
    shared = server_data(prepared, settings, where, validation=theirs)
    return shared, examples_for(settings, prepared, extra, where)


def _tuning_splits(data: DataSettings, share: float) -> tuple[PreparedData, np.ndarray, np.ndarray]:
    """Return the data of trials, and which of their examples are for validation and which for tuning."""
    prepared = prepare(tuning_settings(data, share))
    theirs = split(prepared.dataset, data).validation
    return prepared, theirs, np.setdiff1d(prepared.splits.validation, theirs)


def run_trial(
    experiment: Experiment,
    name: str,
    seed: int,
    rounds: int,
    share: float,
    until: UntilFlat | None = None,
) -> TrialResult:
    """Run one arm with one tuning seed in this process, on one thread; neither held-out split is looked at.

    Parameters
    ----------
    experiment, name
        The arm.
    seed
        The tuning seed.
    rounds
        Federated rounds.
    share
        Of all examples, those on which it is read.
    until
        Ends it where the curve is flat. Default: all rounds.

    Returns
    -------
    TrialResult
        Where the arm could not go on (training that diverges), the reason.
    """
    arm = experiment.arm(name)
    # Nobody else looks, or stops it.
    changes = {"data": tuning_settings(arm.data, share), "rounds": RoundSettings(), "listeners": ()}
    arm = arm.model_copy(update={**changes, "threads": 1})
    began, phase = monotonic(), "start"

    def follow(event: Event) -> None:
        nonlocal phase
        phase = event.phase

    with preserved(), tempfile.TemporaryDirectory(prefix="kdfed-tune-") as store:
        torch.set_num_threads(1)
        shared, examples = tuning_data(experiment.data, share, arm)
        flat = _Flat(until) if until is not None else None
        config = ArmConfig(
            arm=arm,
            data=shared,
            held_out=HeldOut(examples),
            seed=seed,
            name=name,
            never_stop=flat is None,
            simulation=Simulation.of(arm, seed, Path(store), experiment.folder),
            card=Card.of(arm.model, arm.data, _tuning_splits(experiment.data, share)[0]),
            on_event=follow,
            listeners=() if flat is None else (flat,),
        )
        try:
            start = ArrayRecord(dict(initial_state(arm, shared, seed)))
            result = PreConsolidation(make_strategy(config), config).start(
                InProcessGrid(client_app, 1), start, rounds, arm.server.deadlines.train
            )
        except (Exception, SystemExit) as error:  # an arm's own code may call exit
            if ends_program(error):
                raise
            reason = str(error) if isinstance(error, KdfedError) else reason_of(error)
            lasting = isinstance(error, KdfedError)
            return TrialResult(None, one_line(f"{phase}: {reason}"), monotonic() - began, lasting)
    curve = Curve(
        tuple(record.accuracy for record in result.records),
        tuple(record.exchanges for record in result.records),
    )
    return TrialResult(curve, seconds=monotonic() - began)


class _Flat(Listener):
    """Ends an arm where its curve is flat."""

    in_step = True

    def __init__(self, until: UntilFlat) -> None:
        self._until, self._curve = until, list[float]()

    def on_round(self, ended: Round) -> None:
        """Continue the curve."""
        self._curve.append(ended.evaluated.accuracy)

    def should_stop(self) -> str | None:
        """Return ``plateau`` where it is flat."""
        flat = convergence.plateau(self._curve, self._until.rounds, self._until.min_delta)
        return None if flat is None else "plateau"
