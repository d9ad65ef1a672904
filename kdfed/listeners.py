"""Who follows an arm: the protocol of evaluating, stopping, recording, progress, and of a user's own.

An arm (``strategies/arm.py``) trains; whatever else happens in a round is a listener's. Listeners are told in
their order: evaluating first, so that everybody after it finds :attr:`Round.record`. A user's own is named in
the experiment file::

    listeners: [{name: "my_listeners:Table", options: {path: "table.csv"}}]

or given to ``ArmConfig.listeners`` as an object.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kdfed.config import Arm
from kdfed.errors import KdfedError, shown
from kdfed.events import Phase
from kdfed.ledger import Costs
from kdfed.models import State
from kdfed.named import blamed, load_named
from kdfed.records import Absent, RoundRecord
from kdfed.settings import ListenerSettings


@dataclass
class Round:
    """A federated round that has ended, or the start.

    Parameters
    ----------
    number
        Counted from 1; 0 is the start.
    rounds
        How many there are at most.
    state
        The global model's weights after it; not to be changed.
    answered, absent
        Whose work is in them, and who was left out, with the reason.
    costs
        Of the arm so far.
    seconds
        Since the arm began, when the round was evaluated.
    metrics
        What the strategy made of the participants' metrics.
    record
        Its evaluation: None until the first listener, which evaluates, has seen it.
    """

    number: int
    rounds: int
    state: State
    answered: int
    absent: tuple[Absent, ...]
    costs: Costs
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    record: RoundRecord | None = None

    @property
    def evaluated(self) -> RoundRecord:
        """The record, of a round that was evaluated."""
        assert self.record is not None, f"round {self.number} was not evaluated"
        return self.record


class Listener:
    """Follows one arm of one seed; every method may be left out.

    What a method raises ends the arm, like a mistake in any other code of the arm's.
    """

    in_step: bool = False
    """Whether a round must be told before the next one begins: of whoever may stop the arm. Where nobody asks
    for it, a round is evaluated and told while the participants train for the next one already."""

    def on_start(self, name: str, seed: int, arm: Arm) -> None:
        """Before the first message."""

    def on_phase(self, phase: Phase, step: int, steps: int, accuracy: float | None, costs: Costs) -> None:
        """Follow ``hello``, ``teachers`` or ``consolidate``: it begins (step 0), or has made a step.

        Parameters
        ----------
        phase
            Which.
        step, steps
            Epochs of the distillation; 0 elsewhere.
        accuracy
            The student's on the validation split after this step, where it was measured.
        costs
            Of the arm so far.
        """

    def on_round_start(self, number: int, rounds: int) -> None:
        """Before a federated round's messages are made."""

    def on_round(self, ended: Round) -> None:
        """After the start, and after each federated round: it has been evaluated."""

    def should_stop(self) -> str | None:
        """Return why the arm should stop; None to go on. Asked before each round of those in step."""
        return None

    def on_end(self, rounds: int, costs: Costs) -> None:
        """After the last round, also where an exception ends the arm.

        Parameters
        ----------
        rounds
            How many were finished.
        costs
            Of the whole arm.
        """


class Listeners:
    """Tells an arm's listeners, a round as soon as it may be told.

    Parameters
    ----------
    listeners
        In the order in which they are told.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = list(listeners)
        self._untold: Round | None = None
        self._in_step = any(listener.in_step for listener in self._listeners)

    def start(self, name: str, seed: int, arm: Arm) -> None:
        """Tell that an arm begins."""
        for listener in self._listeners:
            listener.on_start(name, seed, arm)

    def phase(
        self, phase: Phase, costs: Costs, step: int = 0, steps: int = 0, accuracy: float | None = None
    ) -> None:
        """Tell that a phase begins, or has made a step."""
        for listener in self._listeners:
            listener.on_phase(phase, step, steps, accuracy, costs)

    def round_start(self, number: int, rounds: int) -> None:
        """Tell that a round begins."""
        for listener in self._listeners:
            listener.on_round_start(number, rounds)

    def round(self, ended: Round) -> None:
        """Tell that a round has ended: now if a listener must be in step, else by :meth:`catch_up`."""
        self._untold = ended
        if self._in_step:
            self.catch_up()

    def catch_up(self) -> None:
        """Tell the round that nobody was told of yet."""
        ended, self._untold = self._untold, None
        if ended is not None:
            for listener in self._listeners:
                listener.on_round(ended)

    def should_stop(self) -> str | None:
        """Return the first reason to stop."""
        reasons = (listener.should_stop() for listener in self._listeners if listener.in_step)
        return next((reason for reason in reasons if reason), None)

    def end(self, rounds: int, costs: Costs) -> None:
        """Tell that the arm has ended."""
        for listener in self._listeners:
            listener.on_end(rounds, costs)


def build_listener(settings: ListenerSettings) -> Listener:
    """Return the listener that an experiment names.

    Raises
    ------
    KdfedError
        If the name cannot be found, or does not make a listener.
    """
    name = settings.name
    with blamed(name, f"expected {shown(name)} to make a listener of {shown(settings.options)}"):
        made = load_named(name)(**settings.options)
    if not isinstance(made, Listener):
        raise KdfedError(
            f"listeners: expected {shown(name)} to make a kdfed.listeners.Listener, got {shown(made)}"
        )
    return made


class FlowerLog(Listener):
    """Logs rounds and accuracies to Flower's logger, as Flower's own strategies do in ``start``."""

    in_step = True  # else a round's accuracy would stand below the next round's title

    def __init__(self) -> None:
        self._log = logging.getLogger("flwr")

    def on_phase(self, phase: Phase, step: int, steps: int, accuracy: float | None, costs: Costs) -> None:
        """Log the teachers' exchange, and the last epoch of the distillation."""
        if phase == "teachers":
            self._log.info("")
            self._log.info("[TEACHERS]")
        elif phase == "consolidate" and step == 1:
            self._log.info("consolidate: distilling the teachers into one student, %d epochs", steps)
        if phase == "consolidate" and step == steps:
            self._log.info("\t└──> epoch %d of %d, validation accuracy %s", step, steps, _shown(accuracy))

    def on_round_start(self, number: int, rounds: int) -> None:
        """Log the round, as Flower does."""
        self._log.info("")
        self._log.info("[ROUND %s/%s]", number, rounds)

    def on_round(self, ended: Round) -> None:
        """Log the evaluation on the server's validation split."""
        where = "Initial global evaluation results" if ended.number == 0 else "\t└──> Global evaluation"
        record = ended.evaluated
        if ended.metrics:
            self._log.info("\t└──> Aggregated MetricRecord: %s", ended.metrics)
        self._log.info(
            "%s: {'accuracy': %s, 'loss': %s}", where, _shown(record.accuracy), _shown(record.loss)
        )

    def on_end(self, rounds: int, costs: Costs) -> None:
        """Log what the arm cost."""
        self._log.info("")
        self._log.info(
            "Strategy execution finished: %d rounds, %d exchanges, %d uploads, %d bytes up, %d bytes down",
            rounds,
            costs.exchanges,
            costs.participant_uploads,
            costs.bytes_up,
            costs.bytes_down,
        )


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"
