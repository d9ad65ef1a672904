"""Who follows an arm: the protocol of evaluating, stopping, recording, progress, and of a user's own.

An arm (``strategies/arm.py``) trains; whatever else happens in a round is a listener's. Listeners are told in
their order: evaluating first, so that everybody after it finds :attr:`Round.record`. A user's own is named in
the experiment file::

    listeners: [{name: "my_listeners:Table", options: {path: "table.csv"}}]

or given to ``ArmConfig.listeners`` as an object.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdfed.closed_form import Refit
from kdfed.config import Arm
from kdfed.distill import ConsolidationResult
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
        The global model's weights after it, or the mean of several with ``server.average``; not to be
        changed.
    answered, absent
        How many participants' work is in them, and who was left out, with the reason.
    costs
        Of the arm so far.
    metrics
        What the strategy made of the participants' metrics.
    consolidation
        What the consolidation took; of the start only, and None without one.
    refits
        What became of the head in closed form, where the arm asks for one after this round.
    record
        Its evaluation: None until the first listener, which evaluates, has seen it.
    evaluation
        What the ServerApp's own evaluation found, if it has one; empty until then.
    who
        The participants that ``answered`` counts, in order.
    """

    number: int
    rounds: int
    state: State
    answered: int
    absent: tuple[Absent, ...]
    costs: Costs
    metrics: dict[str, Any] = field(default_factory=dict)
    consolidation: ConsolidationResult | None = None
    refits: tuple[Refit, ...] = ()
    record: RoundRecord | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    who: tuple[int, ...] = ()

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
    """Whether a round must be evaluated before the next begins, which a listener that may stop the arm needs.
    Where nobody does, that happens while the participants train for the next one already."""

    def on_start(self, name: str, seed: int, arm: Arm) -> None:
        """Before the first message."""

    def on_phase(self, phase: Phase, step: int, steps: int, accuracy: float | None, costs: Costs) -> None:
        """Follow ``hello``, ``start``, ``teachers``, ``consolidate`` or ``statistics``.

        It begins (step 0), or made a step.

        Parameters
        ----------
        phase
            Which.
        step, steps
            Epochs of the distillation, and of the server's own training (``start``); 0 elsewhere.
        accuracy
            The student's on the validation split after this step, where it was measured.
        costs
            Of the arm so far.
        """

    def on_round_start(self, number: int, rounds: int) -> None:
        """Before a federated round's messages are made."""

    def on_trained(self, ended: Round) -> None:
        """After the start, and after each federated round: its weights are there, but no evaluation yet."""

    def on_round(self, ended: Round) -> None:
        """After the start, and after each federated round: it has been evaluated."""

    def on_client_evaluation(self, number: int, metrics: Mapping[str, Any]) -> None:
        """After participants evaluated a round: what the strategy made of their metrics."""

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
        for listener in self._listeners:
            _check_in_step(listener)
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
        """Tell that a round has ended; it is evaluated now if a listener is in step, else later."""
        self.catch_up()  # with the round before, if nothing was sent since
        for listener in self._listeners:
            listener.on_trained(ended)
        self._untold = ended
        if self._in_step:
            self.catch_up()

    def catch_up(self) -> None:
        """Tell the round that nobody was told of yet."""
        ended, self._untold = self._untold, None
        if ended is not None:
            for listener in self._listeners:
                listener.on_round(ended)

    def client_evaluation(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Tell what participants found when they evaluated a round."""
        for listener in self._listeners:
            listener.on_client_evaluation(number, metrics)

    def should_stop(self) -> str | None:
        """Return the first reason to stop."""
        reasons = (listener.should_stop() for listener in self._listeners if listener.in_step)
        return next((reason for reason in reasons if reason), None)

    def end(self, rounds: int, costs: Costs) -> None:
        """Tell that the arm has ended."""
        for listener in self._listeners:
            listener.on_end(rounds, costs)


def _check_in_step(listener: Listener) -> None:
    """Refuse a listener that wants to stop its arm and is never asked, unless its ``__init__`` decided so."""
    kind = type(listener)
    asked = kind.should_stop is Listener.should_stop or "in_step" in vars(listener)
    if not asked and not listener.in_step:
        raise KdfedError(
            f"expected in_step = True of the listener {kind.__module__}:{kind.__name__}, which has "
            "should_stop, got False: it would never be asked"
        )


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
    """Logs rounds and accuracies to Flower's logger, as Flower's own strategies do in ``start``.

    A round is evaluated while the nodes train for the next one, so its lines name it.
    """

    def __init__(self) -> None:
        self._log = logging.getLogger("flwr")
        self._began = 0.0

    def on_start(self, name: str, seed: int, arm: Arm) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_phase(self, phase: Phase, step: int, steps: int, accuracy: float | None, costs: Costs) -> None:
        """Log a phase when it begins."""
        if phase == "teachers":
            self._title("[TEACHERS]")
        elif phase == "start" and step == 0:
            self._title("[SERVER]")
        elif phase == "statistics":
            self._title("[STATISTICS]")
        elif phase == "consolidate" and step == 1:
            self._title("[CONSOLIDATION]")

    def on_round_start(self, number: int, rounds: int) -> None:
        """Log the round, as Flower does."""
        self._title(f"[ROUND {number}/{rounds}]")

    def on_trained(self, ended: Round) -> None:
        """Log who answered, what they measured, and what the consolidation and a refit gave."""
        if ended.consolidation is not None:
            found = ended.consolidation
            self._log.info(
                "consolidate: %d teachers into one student, %d steps: accuracy %s, the ensemble's %s",
                ended.answered,
                found.steps,
                _shown(found.accuracy),
                _shown(found.ensemble_accuracy),
            )
            self._log.info("")
        for refit in ended.refits:
            self._item("%s", refit)
        if ended.metrics:
            self._item("Aggregated MetricRecord: %s", dict(ended.metrics))
        if ended.absent:
            left_out = ", ".join(str(absent.participant) for absent in ended.absent)
            self._item("Left out: participants %s", left_out)
        if ended.number > 0:
            self._item("From %d participants; a mean of all is one result", ended.answered)

    def on_round(self, ended: Round) -> None:
        """Log the evaluation on the server."""
        record, where = ended.evaluated, f"Round {ended.number}"
        own = f"accuracy {_shown(record.accuracy)}, loss {_shown(record.loss)}"
        if ended.number == 0:
            self._log.info("Initial evaluation on validation examples: %s", own)
            if ended.evaluation:
                self._log.info("Initial global evaluation results: %s", dict(ended.evaluation))
            return
        self._item("%s, evaluation on validation examples: %s", where, own)
        if ended.evaluation:
            self._item("%s, global evaluation: %s", where, dict(ended.evaluation))

    def on_client_evaluation(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Log what participants measured."""
        self._item("Aggregated MetricRecord: %s", dict(metrics))

    def on_end(self, rounds: int, costs: Costs) -> None:
        """Log how long it took, and what it cost."""
        self._title(f"Strategy execution finished in {time.monotonic() - self._began:.2f}s")
        self._item("%d rounds, %d exchanges, %d uploads", rounds, costs.exchanges, costs.participant_uploads)
        self._item(
            "%.2f MB up, %.2f MB down, teachers counted", costs.bytes_up / 2**20, costs.bytes_down / 2**20
        )
        self._log.info("")

    def _title(self, text: str) -> None:
        self._log.info("")
        self._log.info(text)

    def _item(self, text: str, *values: object) -> None:
        self._log.info(f"\t└──> {text}", *values)


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"
