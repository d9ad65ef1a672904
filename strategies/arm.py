"""One arm, from hello to the last round: the only training loop on the server side.

::

    hello     who is there
    start     random, from a file, trained on the server's own labels, or from teachers: participants train
              and upload once (``teachers``), the server averages them or distils them into one student
              (``consolidate``)
    rounds    configure -> send -> receive -> aggregate -> tell the listeners

Everything that happens beside training is a listener's (:mod:`strategies.listeners`): evaluating, stopping,
recording, progress. Where no listener must be in step, a round is evaluated while the nodes train for the
next one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from kdfed.arrays import Spec, problem_with_arrays, spec_of
from kdfed.closed_form import BEFORE, WITH, Refit, Sums, When
from kdfed.closed_form.features import head_of
from kdfed.config import Arm, sampled_count
from kdfed.errors import RunError, one_line
from kdfed.ledger import Ledger
from kdfed.limits import UPDATE_BOUND, Limits, Reach, numpy_of
from kdfed.listeners import Listener, Listeners, Round, build_listener
from kdfed.messages import FIXED, Evaluate, ReplyKind, Train
from kdfed.model_average import RoundsMean
from kdfed.models import State, buffer_keys, build_model, load_state, state_of
from kdfed.reading import shape_read
from kdfed.reasons import Once
from kdfed.records import Stopped, load_start
from kdfed.seeding import derive, python_seed, sample_participants
from kdfed.server_model import fit_server_model, labelled_examples
from strategies.arm_config import ArmConfig, ServerData
from strategies.closed_form import HeadPhase
from strategies.hello import ask_nodes, number_devices
from strategies.listeners import Announcing, EvaluateFn, Evaluating, Falling, Recording, Stopping
from strategies.parcels import Exchange
from strategies.participant_grid import ParticipantGrid
from strategies.present import Present
from strategies.result import ArmResult
from strategies.roster import Greeting, Rules
from strategies.teachers import Teacher, TeacherPhase, average
from strategies.wrapped import (
    PRIVATE,
    OwnReplies,
    layers,
    minima,
    repaired,
    takes_means,
    teacher_config,
    weight_key,
)

log = logging.getLogger("kdfed.strategies")


class ArmRunner:
    """Runs one arm over a grid with any Flower strategy.

    Parameters
    ----------
    strategy
        Aggregates; it is shown this round's participants and nobody else.
    config
        The arm.
    network
        The grid whose nodes train.
    """

    def __init__(self, strategy: Strategy, config: ArmConfig, network: Grid) -> None:
        self.strategy, self.config, self.arm, self.network = strategy, config, config.arm, network
        self.ledger = Ledger()
        self._reply: ReplyKind = "mean" if takes_means(strategy) else "each"
        self.result = ArmResult()
        average = config.arm.server.average
        self._mean = None if average is None else RoundsMean(average)
        self._student: State | None = None  # whose head round 1 solves for
        self.listeners = Listeners([])
        self._once = Once(log)

    # ------------------------------------------------------------------ the loop

    def run(
        self,
        initial_arrays: ArrayRecord,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> ArmResult:
        """Run the arm; the arguments are those of ``flwr.serverapp.strategy.Strategy.start``.

        Raises
        ------
        RunError
            If fewer than ``server.minimum`` participants answered. What was recorded stays recorded.
        """
        model = self.config.build(self.arm.model, "evaluation").to(self.config.setup.device)
        self.listeners = Listeners(self._listeners(model, evaluate_fn))
        ended: Round | None = None
        present = self._connected()  # before the clock starts
        try:
            self.listeners.start(self.config.name, self.config.seed, self.arm)
            self.grid = self._hello(present, buffer_keys(model))
            common = dict(initial_arrays.to_torch_state_dict())
            ended = delivered = self._refitted(self._start(common, num_rounds, train_config))
            self.listeners.round(delivered)
            for number in range(1, num_rounds + 1):
                if self._stops():
                    break
                sampled = self._sampled(number)
                if number == 1 and self._student is not None:
                    ended = self._student_round(ended)
                else:
                    ended = self._round(number, sampled, ended, timeout, train_config)
                ended = self._refitted(ended)
                delivered = self._delivered(ended)
                self.listeners.round(delivered)
                self._evaluate_on_clients(delivered, sampled, timeout, evaluate_config)
            else:
                self.listeners.catch_up()
                self._stops()
            self.result.arrays = ArrayRecord(dict(delivered.state))
        except BaseException:
            try:
                self._end(ended)
            except Exception:  # what ended the arm is what its caller must learn
                log.exception("%s, seed %d: after its end", self.config.name, self.config.seed)
            raise
        self._end(ended)
        return self.result

    def _end(self, ended: Round | None) -> None:
        self.listeners.catch_up()
        self.listeners.end(0 if ended is None else ended.number, self.ledger.totals())

    def _listeners(self, model: nn.Module, evaluate_fn: EvaluateFn | None) -> list[Listener]:
        """Return who follows this arm, in the order in which they are told."""
        config, result = self.config, self.result
        return [
            Evaluating(config, model, result, evaluate_fn),
            Recording(config, result),
            Announcing(config, str if config.devices is None else config.devices.roster.name_of),
            Stopping(config),
            Falling(config, self._once.warn),
            *map(build_listener, self.arm.listeners),
            *config.listeners,
        ]

    def _stops(self) -> bool:
        reason = self.listeners.should_stop()
        if reason is None:
            return False
        if self.config.never_stop:
            self._once.warn(
                f"{self.config.name}, seed {self.config.seed}: goes on, because arms that are compared run "
                "equally long, though a listener would stop it",
                reason,
            )
            return False
        if reason not in ("target", "plateau"):
            log.warning("%s, seed %d: a listener stops it: %s", self.config.name, self.config.seed, reason)
            reason = "listener"
        self.result.stopped = cast("Stopped", reason)
        return True

    # ------------------------------------------------------------------ hello

    def _connected(self) -> Present | None:
        """Wait for the nodes of somebody's own ClientApp; others are asked in :meth:`_hello`."""
        if self.config.simulation is not None or self.config.devices is not None:
            return None
        participants, timeout = self.arm.partition.participants, self.arm.server.deadlines.hello
        return number_devices(self.network, participants, timeout)

    def _hello(self, present: Present | None, buffers: frozenset[str]) -> ParticipantGrid:
        """Find out who is there, and return the grid whose nodes they are."""
        config, server = self.config, self.arm.server
        if config.simulation is not None:
            self.listeners.phase("hello", self.ledger.totals())
            present = ask_nodes(
                self.network,
                config.simulation,
                self.arm.partition.participants,
                server.max_examples,
                server.deadlines.hello,
                self.ledger,
                self._once,
            )
        devices = config.devices
        if devices is not None:
            self.listeners.phase("hello", self.ledger.totals())
            rules = Rules.of(self.arm)
            deadline = server.deadlines.hello
            present = Greeting(devices, rules, self.network, deadline, self.ledger, self._once).wait()
        return ParticipantGrid(
            self.network,
            cohort_size=server.cohort_size,
            ledger=self.ledger,
            reply=self._reply,
            simulation=config.simulation,
            device_data=None if devices is None else devices.data,
            enough=server.enough,
            grace=server.grace_seconds,
            present=present,
            limits=Limits(server.max_examples, server.update_bound, buffers),
            log=self._once,
        )

    # ------------------------------------------------------------------ the start

    def _start(self, common: State, rounds: int, train_config: ConfigRecord | None) -> Round:
        """Return the start, as a round: what the common initial weights, a file, labels or teachers give."""
        start, spec = self.arm.start, spec_of(common)
        if start == "random":
            return Round(0, rounds, common, 0, (), self.ledger.totals())
        if start.startswith("file:"):
            state = load_start(start.removeprefix("file:"), spec)
            return Round(0, rounds, state, 0, (), self.ledger.totals())
        if start == "server":
            state = self._server_model(common)
            self._require_usable(state, spec, "the server's own model", "lower server-fit.lr")
            return Round(0, rounds, state, 0, (), self.ledger.totals())
        closed_form = self.arm.closed_form
        sums: Sums | None = None
        refits: tuple[Refit, ...] = ()
        if closed_form is not None and closed_form.before_teachers:
            common, sums, refit = self._solved(common, BEFORE)
            refits = (refit,)
        together = None
        if closed_form is not None and closed_form.with_teachers:
            together = HeadPhase(self.config, self.grid)
        told = teacher_config(self.strategy, train_config)
        phase = TeacherPhase(self.config, self.grid, common, told, together)
        teachers = self._teachers(phase)
        report = self.grid.report
        if start == "averaged":
            state, advice = average(teachers), "lower teachers.lr"
        else:
            if closed_form is not None and closed_form.teacher and sums is not None:
                teachers = [*teachers, phase.solved(sums)]
            state, found = phase.consolidate(teachers, self._distilled)
            self.result.consolidation = found
            if found.warning:
                self._once.warn(f"{self.config.name}, seed {self.config.seed}", found.warning)
            advice = "lower consolidation.lr or the temperature"
        self._require_usable(state, spec, "consolidation", advice)
        if together is not None and phase.sums is not None:
            self._student = state
            state, refit = self._replaced(together, common, phase.sums, WITH, "statistics with the teachers")
            refits = (refit,)
        return Round(
            0,
            rounds,
            state,
            len(report.answered),
            tuple(report.absent),
            self.ledger.totals(),
            consolidation=self.result.consolidation,
            refits=refits,
            who=tuple(report.answered),
        )

    def _teachers(self, phase: TeacherPhase) -> list[Teacher]:
        """Return teachers: read from files where they exist already, else trained by participants."""
        if self.arm.teachers.from_ is not None:
            return phase.read()
        self.listeners.phase("teachers", self.ledger.totals())
        if any(isinstance(layer, PRIVATE) for layer in layers(self.strategy)):
            self._once.warn(
                f"{self.config.name}, seed {self.config.seed}",
                "differential privacy covers the rounds, not the teachers: they are sent neither clipped nor "
                "with noise; train without them (start='random') where the start must be private too",
            )
        teachers, report = phase.train(), self.grid.report
        least = min(self.arm.server.minimum, phase.count)
        answered = len(report.answered)
        if answered == 0 and any("'teacher'" in absent.reason for absent in report.absent):
            log.error("a ClientApp of your own needs app.train('teacher')(teacher(train)) of clients.teacher")
        self._require(answered, least, "teacher phase", "answered with a teacher")
        return teachers

    def _server_model(self, common: State) -> State:
        """Train the common initial weights on the server's own labels; no participant has a part in it."""
        settings, data, costs = self.arm.server_fit, self.config.data, self.ledger.totals()
        self.listeners.phase("start", costs, 0, settings.epochs)
        model = self.config.build(self.arm.model, "server-fit")
        load_state(model, common)
        fit_server_model(
            model,
            labelled_examples(settings, data.validation, data.transfer),
            settings,
            derive(self.config.seed, "server-fit"),
            setup=self.config.setup,
            on_features=self.arm.model.backbone is not None,
            on_epoch=lambda epoch, epochs: self.listeners.phase("start", costs, epoch, epochs),
        )
        return state_of(model)

    def _distilled(self, epoch: int, epochs: int, accuracy: float | None) -> None:
        self.listeners.phase("consolidate", self.ledger.totals(), epoch, epochs, accuracy)

    # ------------------------------------------------------------------ heads in closed form

    def _refitted(self, ended: Round) -> Round:
        """Return a round with a head in closed form, where the arm asks for one after it."""
        settings, number = self.arm.closed_form, ended.number
        if settings is None or number not in settings.at:
            return ended
        state, _, refit = self._solved(ended.state, number)
        report, none = self.grid.report, ended.number == 0 and not ended.answered
        absent = {one.participant: one for one in (*report.absent, *ended.absent)}
        return replace(
            ended,
            state=state,
            answered=len(report.answered) if none else ended.answered,
            who=tuple(report.answered) if none else ended.who,
            absent=tuple(absent[participant] for participant in sorted(absent)),
            costs=self.ledger.totals(),
            refits=(*ended.refits, refit),
        )

    def _solved(self, state: State, at: When) -> tuple[State, Sums | None, Refit]:
        """Return weights with a head in closed form, the sums that it is of, and what the record says.

        Whoever sends what cannot be sums is left out. Where too few are left, the model stays as it is: no
        liar ends a run.
        """
        settings, everybody = self.arm.closed_form, self.arm.partition.participants
        assert settings is not None
        self.listeners.phase("statistics", self.ledger.totals())
        phase, number = HeadPhase(self.config, self.grid), at if isinstance(at, int) else 0
        chosen = list(range(everybody))
        if settings.participants == "sampled":
            count = sampled_count(self.arm)
            chosen = sample_participants(self.config.seed, "statistics-sample", number, everybody, count)
        asked = phase.ask(state, number, chosen)
        where, name = f"statistics after round {number}", settings.head.head
        least = min(self.arm.server.minimum, len(chosen))
        report = self.grid.report
        self._require_statistics(asked.sent, least, where)
        if asked.sums is None or len(report.answered) < least:
            why = f"expected usable statistics of at least {least} participants, got {len(report.answered)}"
            why = one_line(f"{why}. {self._left_out}")
            self._once.warn(
                f"{self.config.name}, seed {self.config.seed}: {where}: the model keeps its head", why
            )
            refit = Refit(at, name, why=why)
        else:
            state_after, refit = self._replaced(phase, state, asked.sums, at, where)
            return state_after, asked.sums, refit
        self.result.refits.append(refit)
        return state, None, refit

    def _replaced(
        self, phase: HeadPhase, state: State, sums: Sums, at: When, where: str
    ) -> tuple[State, Refit]:
        """Return weights with the head that sums of their features give, and what the record says."""
        solved, linear = phase.solve(state, sums)
        self._require_usable(solved, spec_of(state), where, "raise the head's penalty")
        head, counted, steps = phase.settings.head, (len(self.grid.report.answered), sums.examples), 0
        if phase.settings.distillation is not None:
            solved, steps = phase.distilled(state, solved, at if isinstance(at, int) else 0)
            self._require_usable(solved, spec_of(state), where, "lower closed-form.distillation.lr")
        pretrained = self.arm.model.backbone is not None
        refit = Refit.of(at, head.head, *counted, linear, head.calibrate, steps, pretrained)
        self.result.refits.append(refit)
        return solved, refit

    def _student_round(self, before: Round) -> Round:
        """Return round 1 of an arm whose statistics came with the teachers: nobody trains in it.

        Its model is the student, or the average, with the head that sums over its features give; the one
        before it where too few sent any.
        """
        assert self._student is not None
        self.listeners.round_start(1, before.rounds)
        state, sums, refit = self._solved(self._student, 1)
        report = self.grid.report
        return Round(
            1,
            before.rounds,
            before.state if sums is None else state,
            len(report.answered),
            tuple(report.absent),
            self.ledger.totals(),
            refits=(refit,),
            who=tuple(report.answered),
        )

    def _require_statistics(self, sent: int, least: int, where: str) -> None:
        """Refuse to go on where too few participants sent any: no liar can bring that about."""
        if sent == 0 and any("'statistics'" in absent.reason for absent in self.grid.report.absent):
            raise RunError(
                f"{where}: the participants' ClientApp has no handler app.query('statistics'), which a head "
                "in closed form asks for: write one (docs/pre-consolidation.md), use clients.client_app, or "
                f"remove closed-form. {self._left_out}"
            )
        self._require(sent, least, where, "sent statistics")

    # ------------------------------------------------------------------ a round

    def _round(
        self,
        number: int,
        sampled: Sequence[int],
        before: Round,
        timeout: float,
        train_config: ConfigRecord | None,
    ) -> Round:
        """Train one federated round; the round before is evaluated meanwhile, if it was not yet."""
        self.listeners.round_start(number, before.rounds)
        trained, fixed = self._trained(before.state)
        spec, limits = spec_of(trained), self.grid.limits
        reach = Reach(numpy_of(trained), limits)
        self._show(number, sampled, spec, reach)
        local = self.arm.local.at_round(number)
        settings = Train(seed=self.config.seed, server_round=number, model=self.arm.model, local=local)
        config = ConfigRecord({**(train_config or {}), **settings.config()})
        with python_seed(derive(self.config.seed, "configure", number)):  # Flower shuffles
            messages = list(self.strategy.configure_train(number, ArrayRecord(trained), config, self.grid))
        if fixed:
            record = ArrayRecord(fixed)
            for message in messages:
                message.content[FIXED] = record
        replies: list[Message] = list(
            self.grid.send_and_receive(messages, timeout=timeout, meanwhile=self.listeners.catch_up)
        )
        report = self.grid.report
        self._require(len(report.answered), self.arm.server.minimum, f"round {number}", "answered")
        arrays, metrics = self.strategy.aggregate_train(number, replies)
        if arrays is None:
            raise RunError(f"round {number}: the strategy returned no arrays")
        state = repaired(self.strategy, arrays, replies, spec, limits.buffers)
        advice = "lower local.lr or the server's step size"
        self._require_usable(state, spec, f"round {number}", advice, reach)
        state = {key: state.get(key, value) for key, value in before.state.items()}
        if metrics is not None:
            self.result.train_metrics_clientapp[number] = metrics
        return Round(
            number,
            before.rounds,
            state,
            len(report.answered),
            tuple(report.absent),
            self.ledger.totals(),
            metrics={} if metrics is None else dict(metrics),
            who=tuple(report.answered),
        )

    def _trained(self, state: State) -> tuple[State, State]:
        """Return of a model's weights those that rounds train, and those that they do not."""
        part = self.arm.local.trainable
        if part == "all":
            return dict(state), {}
        model = self.config.build(self.arm.model, "evaluation")
        place = head_of(model, shape_read(self.arm.model, self.config.data.input_shape))
        trained = place.trained(state, part)
        return trained, {key: value for key, value in state.items() if key not in trained}

    def _show(self, number: int, sampled: Sequence[int], spec: Spec, reach: Reach) -> None:
        """Show a round's participants to the strategy."""
        bound: Reach | None = reach
        if isinstance(self.strategy, OwnReplies):
            spec, bound = self.strategy.reply_spec(number), None
        exchange = Exchange(
            phase="rounds",
            round=number,
            spec_of=lambda participant: spec,
            reach_of=lambda participant: bound,
            steps_of=partial(self._most_steps, number),
            weight_key=weight_key(self.strategy),
        )
        self.grid.begin(exchange, sampled)
        least = max([self.arm.server.minimum, *minima(self.strategy, "train").values()])
        self._require(len(list(self.grid.get_node_ids())), least, f"round {number}", "can be sampled")

    def _delivered(self, ended: Round) -> Round:
        """Return a round as others see it: with the mean of several models, if the arm asks for one."""
        if self._mean is None:
            return ended
        return replace(ended, state=self._mean.after(ended.number, ended.state))

    def _sampled(self, number: int) -> list[int]:
        """Draw a round's participants."""
        return sample_participants(
            self.config.seed, "sample", number, self.arm.partition.participants, sampled_count(self.arm)
        )

    def _most_steps(self, number: int, examples: int) -> int:
        """Return the most optimiser steps of a participant with so many examples in a round."""
        held = len(self.config.data.transfer_inputs)
        return self.arm.server.most_steps(self.arm.local.at_round(number), examples, held)

    def _evaluate_on_clients(
        self, ended: Round, sampled: Sequence[int], timeout: float, evaluate_config: ConfigRecord | None
    ) -> None:
        """Make the strategy's own evaluation trip, if it wants one; it is counted apart."""
        number, strategy = ended.number, self.strategy
        exchange = Exchange(
            phase="evaluate",
            round=number,
            spec_of=lambda participant: {},
            steps_of=partial(self._most_steps, number),
            weight_key=weight_key(strategy),
        )
        self.grid.begin(exchange, sampled)
        reachable, least = len(list(self.grid.get_node_ids())), minima(strategy, "evaluate")
        option = max(least, key=least.__getitem__, default="")
        if option and reachable < least[option]:  # Flower would wait for ever
            log.warning(
                "%s, round %d: no evaluation by participants, because %d can be reached and %s is %d",
                self.config.name,
                number,
                reachable,
                option,
                least[option],
            )
            return
        settings = Evaluate(seed=self.config.seed, server_round=number, model=self.arm.model)
        config = ConfigRecord({**(evaluate_config or {}), **settings.config()})
        with python_seed(derive(self.config.seed, "evaluate", number)):  # it may sample
            messages = list(
                strategy.configure_evaluate(number, ArrayRecord(dict(ended.state)), config, self.grid)
            )
        if messages:
            self.listeners.catch_up()
            replies = self.grid.send_and_receive(messages, timeout=timeout)
            metrics = strategy.aggregate_evaluate(number, replies)
            if metrics is not None:
                self.result.evaluate_metrics_clientapp[number] = metrics
                self.listeners.client_evaluation(number, dict(metrics))

    # ------------------------------------------------------------------ what must hold to go on

    def _require(self, count: int, least: int, where: str, what: str) -> None:
        if count < least:
            raise RunError(
                f"{where}: expected at least {least} participants (server.minimum), but {count} {what}. "
                f"{self._left_out}"
            )

    def _require_usable(
        self, state: State, spec: Spec, where: str, advice: str, reach: Reach | None = None
    ) -> None:
        """Refuse a model that is not finite, or lies too far from the one before.

        A server's steps may be longer than its participants', whose bound can be a tight one: its own is at
        least the default.
        """
        problem, wanted = problem_with_arrays(state, spec), "finite"
        if problem is None and reach is not None:
            wanted = "usable"
            times = max(1.0, UPDATE_BOUND / reach.limits.update_bound)
            problem = reach.problem_with(numpy_of(state), times)
        if problem is not None:
            answered = self.grid.report.answered
            more = f" and {len(answered) - 10} more" if len(answered) > 10 else ""
            took_part = f"Took part: participants {', '.join(map(str, answered[:10]))}{more}. "
            raise RunError(
                f"{where}: expected a {wanted} model, got {problem}; {advice}. "
                f"{took_part if answered else ''}{self._left_out}"
            )

    @property
    def _left_out(self) -> str:
        reasons = [f"participant {a.participant}: {a.reason}" for a in self.grid.report.absent]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        return f"Left out: {'; '.join(reasons[:5]) or 'nobody'}{more}"


def initial_state(arm: Arm, data: ServerData, seed: int) -> State:
    """Return the common initial weights of a seed: every arm with the same model starts from them."""
    model = build_model(arm.model, data.input_shape, data.classes, derive(seed, "init"))
    return state_of(model)
