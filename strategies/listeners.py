"""What happens in an arm beside training: a round is evaluated, kept, shown, and may be the last.

Each is a :class:`kdfed.listeners.Listener`; a user's own come after them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeAlias

from flwr.app import ArrayRecord, MetricRecord
from torch import nn

from kdfed import convergence
from kdfed.config import Arm
from kdfed.errors import one_line
from kdfed.events import Event, Phase
from kdfed.ledger import Costs
from kdfed.listeners import Listener, Round
from kdfed.models import load_state
from kdfed.records import RoundRecord
from kdfed.task import REGRESSION
from kdfed.train import evaluate
from strategies.arm_config import ArmConfig
from strategies.result import ArmResult

EvaluateFn: TypeAlias = Callable[[int, ArrayRecord], MetricRecord | None]
"""Flower's: (round, weights) -> metrics of an evaluation on the server."""


class Evaluating(Listener):
    """Evaluates the global model on the splits that nothing else sees, and on the validation split.

    Parameters
    ----------
    config
        The arm, and its data.
    model
        The architecture, on the device where it is evaluated; its weights are replaced.
    result
        Gets the metrics of each round.
    evaluate_fn
        The ServerApp's own evaluation. Its metrics are kept instead of accuracy and loss.
    """

    def __init__(
        self, config: ArmConfig, model: nn.Module, result: ArmResult, evaluate_fn: EvaluateFn | None = None
    ) -> None:
        self._config, self._model, self._result, self._evaluate_fn = config, model, result, evaluate_fn
        self._began = time.monotonic()

    def on_start(self, name: str, seed: int, arm: Arm) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_round(self, ended: Round) -> None:
        """Evaluate a round, and make its record."""
        config, data, costs = self._config, self._config.data, ended.costs
        load_state(self._model, ended.state)
        validation, validation_loss = evaluate(self._model, data.validation, data.task)
        accuracy, loss, test = validation, validation_loss, None
        if config.held_out is not None:
            accuracy, loss = evaluate(self._model, config.held_out.evaluation, data.task)
            if config.held_out.test is not None:
                test, _ = evaluate(self._model, config.held_out.test, data.task)
        ended.record = RoundRecord(
            arm=config.name,
            seed=config.seed,
            round=ended.number,
            exchanges=costs.exchanges,
            phase="start" if ended.number == 0 else "rounds",
            accuracy=accuracy,
            test_accuracy=test,
            loss=loss,
            participant_uploads=costs.participant_uploads,
            bytes_up=costs.bytes_up,
            bytes_down=costs.bytes_down,
            local_steps=costs.local_steps,
            answered=ended.answered,
            absent=ended.absent,
            seconds=time.monotonic() - self._began,
            validation_accuracy=validation,
        )
        metrics = MetricRecord({"accuracy": accuracy, "loss": loss})
        if self._evaluate_fn is not None:
            found = self._evaluate_fn(ended.number, ArrayRecord(dict(ended.state)))
            if found is not None:
                metrics = found
                ended.evaluation = dict(found)
        self._result.evaluate_metrics_serverapp[ended.number] = metrics


class Recording(Listener):
    """Keeps the record of each round.

    Parameters
    ----------
    config
        Its ``on_record`` is told.
    result
        Gets the records.
    """

    def __init__(self, config: ArmConfig, result: ArmResult) -> None:
        self._config, self._result = config, result

    def on_round(self, ended: Round) -> None:
        """Keep a round's record."""
        self._result.records.append(ended.evaluated)
        self._config.on_record(ended.evaluated)


class Stopping(Listener):
    """Stops an arm at its targets, or where its curve is flat, if it is asked to.

    Parameters
    ----------
    config
        The arm, and the accuracies that it should reach.
    """

    def __init__(self, config: ArmConfig) -> None:
        self._config, self._curve = config, list[float]()
        rounds = config.arm.rounds
        at_targets = rounds.stop_at_target and bool(config.targets)
        self.in_step = not config.never_stop and (rounds.plateau.stop or at_targets)

    def on_round(self, ended: Round) -> None:
        """Continue the curve on the validation split."""
        accuracy = ended.evaluated.validation_accuracy
        self._curve.append(-math.inf if accuracy is None else accuracy)

    def should_stop(self) -> str | None:
        """Return ``target`` or ``plateau``, where the curve has reached it."""
        rounds, targets = self._config.arm.rounds, self._config.targets
        reached = [convergence.hit(self._curve, target) is not None for target in targets]
        if rounds.stop_at_target and reached and all(reached):
            return "target"
        plateau = rounds.plateau
        if plateau.stop and convergence.plateau(self._curve, plateau.rounds, plateau.min_delta) is not None:
            return "plateau"
        return None


class Falling(Listener):
    """Warns where the first round loses what the start has brought, on the validation split.

    It does where more is lost than :data:`MOST_LOST` points, and than two standard errors of the difference
    of two scores on so many examples.

    Parameters
    ----------
    config
        The arm.
    warn
        Is told of what, and why.
    """

    def __init__(self, config: ArmConfig, warn: Callable[[str, str], object]) -> None:
        self._config, self._warn = config, warn
        self._start: float | None = None

    def on_round(self, ended: Round) -> None:
        """Compare the first round with the start, unless that is random."""
        arm, accuracy = self._config.arm, ended.evaluated.validation_accuracy
        heads = arm.closed_form
        solved, start = heads is not None and 0 in heads.at, int(heads is not None and heads.with_teachers)
        if ended.number == start and (arm.start != "random" or solved):
            self._start = accuracy
        if ended.number != start + 1 or self._start is None or accuracy is None:
            return
        lost = 100 * (self._start - accuracy)
        if lost > max(MOST_LOST, 100 * self._noise(self._start, accuracy)):
            self._warn(
                f"{self._config.name}, seed {self._config.seed}",
                f"the first round lost {lost:.1f} points of the start: lower local.lr",
            )

    def _noise(self, *scores: float) -> float:
        """Return two standard errors of a difference of scores, as if they were of different examples.

        That of an accuracy a is :math:`a (1 - a) / N`, squared; that of an R^2 about :math:`4 R^2 (1 -
        R^2)^2 / N`.
        """
        known = [min(max(score, 0.0), 1.0) for score in scores]
        regression = self._config.data.task is REGRESSION
        spread = sum(4 * one * (1 - one) ** 2 if regression else one * (1 - one) for one in known)
        return 2 * math.sqrt(spread / len(self._config.data.validation))


MOST_LOST = 2.0
"""Points of accuracy that the first round may lose of the start without a warning, however many examples it
is measured on."""


NAMED = 10
"""So many participants are named in a line for people; more are counted."""


class Announcing(Listener):
    """Tells the arm's steps as events, for progress displays.

    Parameters
    ----------
    config
        Its ``on_event`` is told.
    name_of
        What people call a participant. Default: its number.
    """

    def __init__(self, config: ArmConfig, name_of: Callable[[int], str] = str) -> None:
        self._config, self._name_of = config, name_of

    def on_phase(self, phase: Phase, step: int, steps: int, accuracy: float | None, costs: Costs) -> None:
        """Tell a phase, or a step of one."""
        self._tell(phase, step, steps, accuracy, costs)

    def on_trained(self, ended: Round) -> None:
        """Tell what became of the head."""
        for refit in ended.refits:
            self._tell("statistics", 1, 1, None, ended.costs, str(refit))

    def on_round(self, ended: Round) -> None:
        """Tell a round, its accuracy, and whose work is in it."""
        costs, accuracy, who = ended.costs, ended.evaluated.accuracy, self._who(ended)
        self._tell("rounds", ended.number, ended.rounds, accuracy, costs, who=who)

    def _who(self, ended: Round) -> str:
        """Say who answered, and who did not and why; nothing where nobody was asked."""
        if not ended.answered and not ended.absent:
            return ""
        count = f"{ended.answered} answered"
        names = ", ".join(map(self._name_of, ended.who)) if len(ended.who) <= NAMED else ""
        words = f"{count} ({names})" if names else count
        left_out = [
            f"{self._name_of(one.participant)} ({one_line(one.reason, 100)})" for one in ended.absent[:NAMED]
        ]
        more = len(ended.absent) - len(left_out)
        if not left_out:
            return words
        return f"{words}, without {', '.join(left_out)}{f' and {more} more' if more else ''}"

    def _tell(
        self,
        phase: Phase,
        step: int,
        steps: int,
        accuracy: float | None,
        costs: Costs,
        message: str = "",
        who: str = "",
    ) -> None:
        self._config.on_event(
            Event(
                arm=self._config.name,
                seed=self._config.seed,
                phase=phase,
                step=step,
                steps=steps,
                accuracy=accuracy,
                bytes=costs.bytes_up + costs.bytes_down,
                participant_uploads=costs.participant_uploads,
                message=message,
                who=who,
            )
        )
