"""One arm, from hello to the last round: the only training loop on the server side.

::

    hello        who is there
    teachers     participants train teachers and upload weights or logits   (starts from teachers only)
    consolidate  teachers -> one student                                    (consolidated start only)
    rounds       configure -> send -> receive -> aggregate -> evaluate -> converged?

Where no stop hangs on it, a round is evaluated while the nodes train for the next one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import nn

from kdfed import convergence, wire
from kdfed.averaging import average_states
from kdfed.config import Arm, sampled_count
from kdfed.distill import ConsolidationResult
from kdfed.errors import RunError
from kdfed.events import Event
from kdfed.ledger import Costs, Ledger
from kdfed.limits import UPDATE_BOUND, Limits, Reach, numpy_of
from kdfed.models import State, buffer_keys, build_model, load_state, state_of
from kdfed.records import Absent, RoundRecord, load_start
from kdfed.seeding import derive, python_seed, sample_participants
from kdfed.train import evaluate
from strategies.arm_config import ArmConfig, ServerData
from strategies.means import SERVER_OPTIMISERS, takes_means
from strategies.participant_grid import ParticipantGrid
from strategies.teachers import TeacherPhase, average

log = logging.getLogger("kdfed.strategies")

Stopped = Literal["target", "plateau", "max-rounds"]


@runtime_checkable
class OwnReplies(Protocol):
    """A strategy whose participants send back something else than the model."""

    def reply_spec(self, server_round: int) -> wire.Spec:
        """Return shapes and dtypes of what a participant sends back in a round."""


@dataclass
class ArmResult(Result):
    """Flower's result, and what kdfed adds to it.

    Parameters
    ----------
    records
        One per evaluation; the first is the start.
    stopped
        Why the arm ended.
    consolidation
        What the consolidation took; None without one.
    """

    records: list[RoundRecord] = field(default_factory=list)
    stopped: Stopped = "max-rounds"
    consolidation: ConsolidationResult | None = None


class ArmRunner:
    """Runs one arm over a grid with any Flower strategy.

    Parameters
    ----------
    strategy
        Aggregates; it is shown this round's participants and nobody else.
    config
        The arm.
    grid
        The network.
    """

    def __init__(self, strategy: Strategy, config: ArmConfig, grid: Grid) -> None:
        self.strategy, self.config, self.arm = strategy, config, config.arm
        self.ledger = Ledger()
        reply: wire.Reply = "mean" if takes_means(strategy) else "each"
        roster = None if config.simulation is not None else self._roster(grid)
        self.grid = ParticipantGrid(
            grid,
            cohort_size=self.arm.server.cohort_size,
            ledger=self.ledger,
            reply=reply,
            simulation=config.simulation,
            roster=roster,
            limits=Limits(self.arm.server.max_examples, self.arm.server.update_bound),
        )
        self.device = config.setup.device
        self.result = ArmResult()
        self._pending: Callable[[], None] = lambda: None
        self._started = time.monotonic()

    # ------------------------------------------------------------------ the loop

    def run(
        self,
        initial_arrays: ArrayRecord,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> ArmResult:
        """Run the arm; the arguments are those of ``flwr.serverapp.strategy.Strategy.start``.

        Raises
        ------
        RunError
            If fewer than ``server.minimum`` participants answered. What was recorded stays recorded.
        """
        if self.config.simulation is not None:
            self._hello()
        common = dict(initial_arrays.to_torch_state_dict())
        spec = wire.spec_of(common)
        model = self.config.build(self.arm.model, "evaluation").to(self.device)
        state, answered, absent = self._start(common)
        limits = replace(self.grid.limits, buffers=buffer_keys(model))

        def evaluate_later(server_round: int, state: State, answered: int, absent: Sequence[Absent]) -> None:
            costs = self.ledger.totals()
            self._pending = lambda: self._evaluate(
                server_round, num_rounds, model, state, answered, absent, costs, evaluate_fn
            )
            if not self._overlaps:
                self._evaluate_pending()

        evaluate_later(0, state, answered, absent)
        try:
            for server_round in range(1, num_rounds + 1):
                if self._converged():
                    break
                reach = Reach(numpy_of(state), limits)
                sampled = self._sample(server_round, spec, reach)
                config = ConfigRecord({**(train_config or {}), **self._settings(server_round)})
                with python_seed(derive(self.config.seed, "configure", server_round)):  # Flower shuffles
                    messages = list(
                        self.strategy.configure_train(
                            server_round, ArrayRecord(dict(state)), config, self.grid
                        )
                    )
                replies = list(
                    self.grid.send_and_receive(messages, timeout=timeout, meanwhile=self._evaluate_pending)
                )
                report = self.grid.report
                self._require(
                    len(report.answered), self.arm.server.minimum, f"round {server_round}", "answered"
                )
                arrays, metrics = self.strategy.aggregate_train(server_round, replies)
                if arrays is None:
                    raise RunError(f"round {server_round}: the strategy returned no arrays")
                state = self._repair(arrays, replies, model, spec)
                advice = "lower local.lr or the server's step size"
                self._require_usable(state, spec, f"round {server_round}", advice, reach)
                if metrics is not None:
                    self.result.train_metrics_clientapp[server_round] = metrics
                evaluate_later(server_round, state, len(report.answered), report.absent)
                self._evaluate_on_clients(server_round, state, sampled, timeout, evaluate_config)
            else:
                self._evaluate_pending()
                self._converged()
        finally:
            self._evaluate_pending()
        self.result.arrays = ArrayRecord(dict(state))
        return self.result

    @property
    def _overlaps(self) -> bool:
        """Whether a round's evaluation can wait until the nodes train for the next: no stop hangs on it."""
        rounds, config = self.arm.rounds, self.config
        return config.never_stop or not (rounds.plateau.stop or (rounds.stop_at_target and config.targets))

    def _evaluate_pending(self) -> None:
        pending, self._pending = self._pending, lambda: None
        pending()

    def _sample(self, server_round: int, spec: wire.Spec, reach: Reach) -> list[int]:
        """Draw a round's participants and show them to the strategy."""
        owed: Reach | None = reach
        sampled = sample_participants(
            self.config.seed,
            "sample",
            server_round,
            self.arm.partition.participants,
            sampled_count(self.arm),
        )
        if isinstance(self.strategy, OwnReplies):
            spec, owed = self.strategy.reply_spec(server_round), None
        self.grid.select(
            sampled,
            phase="rounds",
            round_number=server_round,
            spec_of=lambda participant: spec,
            reach_of=lambda participant: owed,
            steps_of=self._most_steps,
            weight_key=self._weight_key,
        )
        least = max([self.arm.server.minimum, *minima(self.strategy, "train").values()])
        self._require(len(list(self.grid.get_node_ids())), least, f"round {server_round}", "can be sampled")
        return sampled

    @property
    def _weight_key(self) -> str:
        """The metric by which the strategy, or the one inside it, weighs replies."""
        weighing = [layer for layer in layers(self.strategy) if isinstance(layer, FedAvg)]
        return weighing[0].weighted_by_key if weighing else wire.NUM_EXAMPLES

    def _most_steps(self, examples: int) -> int:
        """Return the most optimiser steps of a participant with so many examples in a round."""
        held = len(self.config.data.transfer_inputs)
        return self.arm.server.most_steps(self.arm.local, examples, held)

    def _repair(
        self, arrays: ArrayRecord, replies: Sequence[Message], model: nn.Module, spec: wire.Spec
    ) -> State:
        """Undo what Flower's arithmetic does to a model: float64 counters, server steps on buffers."""
        state = dict(arrays.to_torch_state_dict())
        steps = any(isinstance(layer, SERVER_OPTIMISERS) for layer in layers(self.strategy))
        if steps and (buffers := buffer_keys(model)):
            states = [dict(_arrays(reply).to_torch_state_dict()) for reply in replies]
            weights = [_number(_metrics(reply), self._weight_key) for reply in replies]
            mean = average_states(states, weights)
            state.update({key: mean[key] for key in buffers})
        repaired: State = {}
        for key, (_, dtype) in spec.items():
            wanted, value = getattr(torch, dtype), state[key]
            if value.is_floating_point() and not wanted.is_floating_point:
                value = value.round()
            repaired[key] = value.to(wanted)
        return repaired

    # ------------------------------------------------------------------ who takes part

    def _hello(self) -> None:
        self._tell("hello")
        participants = self.arm.partition.participants
        self.grid.hello(
            {"versions": json.dumps(wire.versions())}, self.arm.server.deadlines.hello, participants
        )

    def _roster(self, grid: Grid) -> dict[int, int]:
        """Wait until every participant's node is connected, then number nodes by their ids."""
        wanted, end = self.arm.partition.participants, time.monotonic() + self.arm.server.deadlines.hello
        while len(nodes := sorted(grid.get_node_ids())) < wanted:
            if time.monotonic() > end:
                raise RunError(f"expected {wanted} nodes (partition.participants), got {len(nodes)} in time")
            time.sleep(0.2)
        return dict(enumerate(nodes[:wanted]))

    def _require(self, count: int, least: int, where: str, what: str) -> None:
        if count < least:
            raise RunError(
                f"{where}: expected at least {least} participants (server.minimum), but {count} {what}. "
                f"{self._left_out}"
            )

    @property
    def _left_out(self) -> str:
        reasons = [f"participant {a.participant}: {a.reason}" for a in self.grid.report.absent]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        return f"Left out: {'; '.join(reasons[:5]) or 'nobody'}{more}"

    # ------------------------------------------------------------------ the start

    def _start(self, common: State) -> tuple[State, int, list[Absent]]:
        start = self.arm.start
        if start == "random":
            return common, 0, []
        if start.startswith("file:"):
            return load_start(start.removeprefix("file:"), wire.spec_of(common)), 0, []
        self._tell("teachers")
        phase = TeacherPhase(self.config, self.grid, common)
        teachers, report = phase.train(), self.grid.report
        least = min(self.arm.server.minimum, phase.count)
        self._require(len(report.answered), least, "teacher phase", "answered with a teacher")
        if start == "averaged":
            state = average(teachers)
        else:
            state, self.result.consolidation = phase.consolidate(
                teachers, lambda epoch, epochs, accuracy: self._tell("consolidate", epoch, epochs, accuracy)
            )
        spec = wire.spec_of(common)
        advice = "lower consolidation.lr or the temperature"
        if start == "averaged":
            advice = "lower teachers.lr"
        self._require_usable(state, spec, "consolidation", advice)
        return state, len(report.answered), report.absent

    def _require_usable(
        self, state: State, spec: wire.Spec, where: str, advice: str, reach: Reach | None = None
    ) -> None:
        """Refuse a model that is not finite, or lies too far from the one before.

        A server's steps may be longer than its participants', whose bound can be a tight one: its own is at
        least the default.
        """
        problem, wanted = wire.problem_with(state, spec), "finite"
        if problem is None and reach is not None:
            wanted = "usable"
            times = max(1.0, UPDATE_BOUND / reach.limits.update_bound)
            problem = reach.problem_with(numpy_of(state), times)
        if problem is not None:
            answered = self.grid.report.answered
            more = f" and {len(answered) - 10} more" if len(answered) > 10 else ""
            raise RunError(
                f"{where}: expected a {wanted} model, got {problem}; {advice}. Took part: participants"
                f" {', '.join(map(str, answered[:10]))}{more}. {self._left_out}"
            )

    # ------------------------------------------------------------------ evaluation and records

    def _evaluate(
        self,
        server_round: int,
        num_rounds: int,
        model: nn.Module,
        state: State,
        answered: int,
        absent: Sequence[Absent],
        costs: Costs,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    ) -> None:
        load_state(model, state)
        data = self.config.data
        accuracy, loss = evaluate(model, data.validation, data.task)
        test_accuracy = evaluate(model, data.test, data.task)[0] if data.test is not None else float("nan")
        record = RoundRecord(
            arm=self.config.name,
            seed=self.config.seed,
            round=server_round,
            exchanges=costs.exchanges,
            phase="start" if server_round == 0 else "rounds",
            accuracy=accuracy,
            test_accuracy=test_accuracy,
            loss=loss,
            participant_uploads=costs.participant_uploads,
            bytes_up=costs.bytes_up,
            bytes_down=costs.bytes_down,
            local_steps=costs.local_steps,
            answered=answered,
            absent=tuple(absent),
            seconds=time.monotonic() - self._started,
        )
        self.result.records.append(record)
        metrics = MetricRecord({"accuracy": accuracy, "loss": loss})
        if evaluate_fn is not None:
            metrics = evaluate_fn(server_round, ArrayRecord(dict(state))) or metrics
        self.result.evaluate_metrics_serverapp[server_round] = metrics
        self.config.on_record(record)
        self._tell("rounds", server_round, num_rounds, accuracy, costs)

    def _evaluate_on_clients(
        self,
        server_round: int,
        state: State,
        sampled: Sequence[int],
        timeout: float,
        evaluate_config: ConfigRecord | None,
    ) -> None:
        """Make the strategy's own evaluation trip, if it wants one; it is counted apart."""
        self.grid.select(
            sampled,
            phase="evaluate",
            round_number=server_round,
            spec_of=lambda participant: {},
            steps_of=self._most_steps,
            weight_key=self._weight_key,
        )
        reachable, least = len(list(self.grid.get_node_ids())), minima(self.strategy, "evaluate")
        option = max(least, key=least.__getitem__, default="")
        if option and reachable < least[option]:  # Flower would wait for ever
            log.warning(
                "%s, round %d: no evaluation by participants, because %d can be reached and %s is %d",
                self.config.name,
                server_round,
                reachable,
                option,
                least[option],
            )
            return
        config = ConfigRecord({**(evaluate_config or {}), **self._settings(server_round)})
        with python_seed(derive(self.config.seed, "evaluate", server_round)):  # it may sample
            messages = list(
                self.strategy.configure_evaluate(server_round, ArrayRecord(dict(state)), config, self.grid)
            )
        if messages:
            self._evaluate_pending()
            replies = self.grid.send_and_receive(messages, timeout=timeout)
            metrics = self.strategy.aggregate_evaluate(server_round, replies)
            if metrics is not None:
                self.result.evaluate_metrics_clientapp[server_round] = metrics

    def _converged(self) -> bool:
        """Tell whether the arm may stop, and say why in the result."""
        if self._overlaps:
            return False
        rounds, config = self.arm.rounds, self.config
        curve = [record.accuracy for record in self.result.records]
        hit = convergence.sustained_hit if rounds.rule == "sustained" else convergence.first_hit
        reached = [hit(curve, target) is not None for target in config.targets]
        if rounds.stop_at_target and reached and all(reached):
            self.result.stopped = "target"
            return True
        if rounds.plateau.stop:
            flat = convergence.plateau(curve, rounds.plateau.rounds, rounds.plateau.min_delta)
            if flat is not None:
                self.result.stopped = "plateau"
                return True
        return False

    # ------------------------------------------------------------------ small helpers

    def _settings(self, server_round: int) -> dict[str, str | int]:
        return {
            "server-round": server_round,
            "seed": self.config.seed,
            "model": self.arm.model.model_dump_json(),
            "local": self.arm.local.model_dump_json(),
        }

    def _tell(
        self,
        phase: Literal["hello", "teachers", "consolidate", "rounds"],
        step: int = 0,
        steps: int = 0,
        accuracy: float | None = None,
        costs: Costs | None = None,
    ) -> None:
        costs = costs or self.ledger.totals()
        self.config.on_event(
            Event(
                arm=self.config.name,
                seed=self.config.seed,
                phase=phase,
                step=step,
                steps=steps,
                accuracy=accuracy,
                bytes=costs.bytes_up + costs.bytes_down,
                participant_uploads=costs.participant_uploads,
            )
        )


def initial_state(arm: Arm, data: ServerData, seed: int) -> State:
    """Return the common initial weights of a seed: every arm with the same model starts from them."""
    model = build_model(arm.model, data.input_shape, data.classes, derive(seed, "init"))
    return state_of(model)


def _arrays(reply: Message) -> ArrayRecord:
    return reply.content.array_records[wire.ARRAYS]


def _metrics(reply: Message) -> MetricRecord:
    return reply.content.metric_records[wire.METRICS]


def _number(metrics: MetricRecord, key: str) -> float:
    value = metrics[key]
    assert isinstance(value, int | float), f"{key} was checked by the participant grid"
    return float(value)


def layers(strategy: Strategy) -> list[Strategy]:
    """Return a strategy, the one that it wraps (as differential privacy does), and so on inwards."""
    found: list[Strategy] = []
    inner: object = strategy
    while isinstance(inner, Strategy) and not any(inner is one for one in found):
        found.append(inner)
        inner = getattr(inner, "strategy", None)
    return found


def minima(strategy: Strategy, trip: Literal["train", "evaluate"]) -> dict[str, int]:
    """Return below how many nodes a Flower strategy would wait for ever, by the option that says so.

    Empty where it makes no such trip.
    """
    least: dict[str, int] = {}
    for layer in layers(strategy):
        if isinstance(layer, FedAvg) and getattr(layer, f"fraction_{trip}") > 0:
            for option in ("min_available_nodes", f"min_{trip}_nodes"):
                least[option] = max(least.get(option, 0), getattr(layer, option))
    return least
