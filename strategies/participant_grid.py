"""The Grid whose node ids are participants.

A strategy sees this round's participants as nodes, in a stable order, and ordinary Flower messages. The
network sees a few nodes, each with one message that carries whole cohorts. In between, this decorator
cuts, deals, packs, checks, names who is left out and why, and fills the ledger.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from uuid import uuid4

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from kdfed import wire
from kdfed.errors import RunError, WireError, one_line
from kdfed.ledger import Ledger
from kdfed.limits import LabelCounts, Limits, Reach
from kdfed.reasons import Once
from kdfed.records import Absent
from strategies.round_mean import RoundMean, problem_with_arrays, record_of

SpecOf = Callable[[int], wire.Spec]
"""Shapes and dtypes that a participant's arrays must have; empty when none are sent back."""

ReachOf = Callable[[int], Reach | None]
"""How far a participant's arrays may lie from those that it trained from; None for no bound."""

StepsOf = Callable[[int], int]
"""The most optimiser steps that the settings allow with so many examples."""

POLL_SECONDS = 0.0005, 0.02
"""Least and most seconds between two looks for replies; in between a fiftieth of the time waited so far."""

_FIRST_NODE_SECONDS = 60.0
_MOST_WARNINGS = 20
_ASKS = 60, 600.0  # more questions who is there, over more seconds, are nothing but waiting


@dataclass(frozen=True)
class Terms:
    """What the replies of an exchange must keep to.

    Parameters
    ----------
    spec_of, reach_of
        What a participant's arrays must look like, and how far they may lie from those it was sent.
    steps_of
        The most optimiser steps. Default: no limit.
    label_counts
        What label counts must be like. Default: nobody asks for them.
    weight_key
        The metric by which the strategy weighs what is sent.
    """

    spec_of: SpecOf
    reach_of: ReachOf = lambda participant: None
    steps_of: StepsOf | None = None
    label_counts: LabelCounts | None = None
    weight_key: str = wire.NUM_EXAMPLES


@dataclass
class Bundle:
    """One network message that is under way: the participants' messages it carries.

    Where results are summed, ``done`` says that no more will come, and ``results`` wait for their turn.
    """

    phase: str
    round: int
    plan: wire.Plan
    messages: dict[int, Message]
    terms: Terms
    node: int
    late: bool = False
    total: Total | None = None
    done: bool = False
    results: list[Result] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One result of a reply.

    Parameters
    ----------
    participants
        Whose work is in it, in order.
    content
        An ordinary Flower reply.
    local_steps
        The optimiser steps that each of them says it made.
    """

    participants: list[int]
    content: RecordDict
    local_steps: list[int]


@dataclass
class Total:
    """The sum of a round: bundles in cohort order, and what has been added of those in front."""

    mean: RoundMean
    waiting: deque[Bundle]
    first: Message | None = None
    participants: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Ready:
    """A checked result, and whose work is in it."""

    reply: Message
    participants: tuple[int, ...]


@dataclass
class Report:
    """What an exchange brought.

    Parameters
    ----------
    answered
        Participants whose work was taken, in order.
    absent
        Participants that were left out, with the reason.
    """

    answered: list[int] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)


class ParticipantGrid(Grid):
    """A Flower Grid whose nodes are the sampled participants of one round.

    Parameters
    ----------
    grid
        The network: Flower's own grid, or one of the engines'.
    cohort_size
        At most this many participants are trained together in one call, 1 or larger.
    ledger
        Filled with every logical message.
    reply
        ``mean`` when the strategy takes weighted means, else ``each``. In a simulation such a strategy gets
        one reply a round, the mean of all (see :class:`~strategies.round_mean.RoundMean`); from devices it
        gets each one's.
    simulation
        The ``simulation`` record that tells simulated nodes whose data to use; never counted. Default:
        real nodes.
    roster
        The node of each participant. Default: nodes own nobody, and cohorts are dealt to any of them.
    limits
        How much a participant may say.

    Notes
    -----
    Cohorts are cut from the sampled participants alone, so they do not depend on nodes, on the order of
    replies, or on who is absent. Replies are matched by ``reply_to_message_id`` only: error replies of the
    SuperLink carry another source.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        cohort_size: int,
        ledger: Ledger,
        reply: wire.Reply,
        simulation: Mapping[str, str | int] | None = None,
        roster: Mapping[int, int] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.network = grid
        self.cohort_size = cohort_size if roster is None else 1
        self.ledger = ledger
        self.simulation = simulation
        self.roster = roster
        self.reply: wire.Reply = reply
        self.limits = limits or Limits()
        self.report = Report()
        self._held = np.empty(0, np.int64)  # examples of each participant, as hello told; else empty
        self._sampled: dict[int, None] = {}  # a set that keeps its order
        self._phase, self._round = "", 0
        self._terms = Terms(lambda participant: {})
        self._cohorts: list[tuple[int, ...]] = []
        self._open: dict[str, Bundle] = {}
        self._ready: dict[str, Ready] = {}
        self._late: list[Absent] = []
        self._asks: list[float] = []  # when a strategy asked who is there, since it last sent something
        self._log = Once(logging.getLogger("kdfed.strategies"))

    # ------------------------------------------------------------------ what the arm runner says

    def select(
        self,
        participants: Sequence[int],
        *,
        phase: str,
        round_number: int,
        spec_of: SpecOf,
        reach_of: ReachOf = lambda participant: None,
        steps_of: StepsOf | None = None,
        label_counts: LabelCounts | None = None,
        weight_key: str = wire.NUM_EXAMPLES,
    ) -> None:
        """Begin an exchange.

        Parameters
        ----------
        participants
            This round's sample. Those whose earlier message is still open are left out and named.
        phase
            ``teachers``, ``rounds`` or ``evaluate``, for the ledger.
        round_number
            The federated round; 0 before the first.
        spec_of
            Says what a participant's arrays must look like to be summed.
        reach_of, steps_of, label_counts, weight_key
            See :class:`Terms`.
        """
        self.report = Report()
        self._asks = []
        self._phase, self._round = phase, round_number
        self._terms = Terms(spec_of, reach_of, steps_of, label_counts, weight_key)
        if self._open:
            self._pull()
        busy = {p: bundle.round for bundle in self._open.values() for p in bundle.plan.participants}
        drawn = sorted(participants)
        self._cohorts = self._cut(drawn)
        self._sampled = dict.fromkeys(p for p in drawn if p not in busy)
        self.report.absent += [
            Absent(p, f"busy: has not answered round {busy[p]} yet") for p in drawn if p in busy
        ]
        if phase != "evaluate":
            self.ledger.open_exchange(phase)

    def _cut(self, participants: Sequence[int]) -> list[tuple[int, ...]]:
        size = self.cohort_size
        return [tuple(participants[i : i + size]) for i in range(0, len(participants), size)]

    def hello(self, config: Mapping[str, str | int], timeout: float, participants: int | None = None) -> None:
        """Ask every node of a simulation what it knows, and make sure that all know the same.

        Parameters
        ----------
        config
            The settings of the hello; ``versions`` is a JSON object of those that must agree.
        timeout
            Seconds to wait.
        participants
            How many there are. Default: as many as the nodes say.

        Raises
        ------
        RunError
            If no node answers, one runs other versions than the server, tells what cannot be, or nodes hold
            different data.
        """
        content = RecordDict({wire.CONFIG: ConfigRecord(dict(config))})
        logical_down = _bytes(content)
        if self.simulation is not None:
            content[wire.SIMULATION] = ConfigRecord(dict(self.simulation))
        messages = [Message(content, node, wire.HELLO, ttl=timeout) for node in self.nodes()]
        replies = list(self.network.send_and_receive(messages, timeout=timeout))
        good = [reply for reply in replies if not reply.has_error()]
        for reply in good:
            self._pass_on(reply.content)
        bad = [reply for reply in replies if reply.has_error()]
        reasons = {self._log.warn("hello", str(reply.error.reason)) for reply in bad}
        if not good:
            reasons = reasons or {f"no reply within {timeout:g} seconds"}
            raise RunError(f"expected an answer to hello from a node, got none: {'; '.join(sorted(reasons))}")
        held = [_hello(reply, str(config["versions"]), participants, self.limits.examples) for reply in good]
        told = {(len(one.each), int(one.each.sum()), one.digest) for one in held}
        if len(told) > 1 or not all(np.array_equal(one.each, held[0].each) for one in held):
            raise RunError(
                f"expected every node to hold the same partition, got {sorted(told)}; give all nodes the "
                "same data"
            )
        self._held = held[0].each
        logical_up = (
            MetricRecord({wire.NUM_EXAMPLES: 1}).count_bytes()
            + ConfigRecord({"versions": str(config["versions"])}).count_bytes()
        )
        self.ledger.down("hello", logical_down, messages=len(self._held))
        self.ledger.up("hello", logical_up, 0, replies=len(self._held))

    # ------------------------------------------------------------------ Flower's Grid

    def set_run(self, run: Run) -> None:
        """Set the run of the network's grid."""
        self.network.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the network's grid."""
        return self.network.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message for one participant."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return this round's participants, in order.

        Raises
        ------
        RunError
            If a strategy asks again and again, sends nothing, and so waits for somebody who will not come.
        """
        now = time.monotonic()
        self._asks.append(now)
        asks, seconds = _ASKS
        if len(self._asks) > asks and now - self._asks[0] > seconds:
            raise RunError(
                f"{self._phase} {self._round}: the strategy waits for more participants than the "
                f"{len(self._sampled)} that can be reached; lower its minimum, or raise server.sampled"
            )
        return list(self._sampled)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send participants' messages, one network message a node; return the participants' message ids."""
        return self._push(messages, None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived for these message ids.

        A cohort's or a round's mean answers the message of its first participant that answered.
        """
        self._pull()
        wanted = set(message_ids)
        found = [self._ready.pop(key).reply for key in list(self._ready) if key in wanted]
        return sorted(found, key=lambda message: message.metadata.src_node_id)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Iterable[Message]:
        """Send participants' messages and wait for the replies, at most ``timeout`` seconds.

        Parameters
        ----------
        meanwhile
            Called once everything is sent, before the first look for replies: work that the nodes need not
            wait for. Its time counts towards ``timeout``.

        Returns
        -------
        list of Message
            In participant order; whoever is missing is named in :attr:`report`.
        """
        end = time.monotonic() + (timeout if timeout is not None else 365 * 86400)
        ids = set(self._push(messages, timeout))
        if meanwhile is not None:
            meanwhile()
        self._wait(end)
        for bundle in self._waiting():
            bundle.late = True
            self._leave_out(bundle.plan.participants, f"no reply within {timeout:g} seconds")
            self._close(bundle)
        ready = [self._ready.pop(key) for key in list(self._ready) if key in ids]
        replies = self._agreeing(sorted(ready, key=lambda one: one.participants))
        if self._phase != "evaluate":
            self.report.absent += self._late
            self._late = []
        self.report.answered.sort()
        self.report.absent.sort(key=lambda absent: absent.participant)
        return replies

    def _wait(self, end: float) -> None:
        began, (least, most) = time.monotonic(), POLL_SECONDS
        waits = bool(getattr(self.network, "waits", False))  # it waits itself when it is asked
        while True:
            self._pull()
            now = time.monotonic()
            if now >= end or not self._waiting():
                return
            if not waits:
                time.sleep(min(most, max(least, (now - began) / 50)))

    # ------------------------------------------------------------------ sending

    def nodes(self) -> list[int]:
        """Return the network's nodes, waiting up to a minute for the first.

        Raises
        ------
        RunError
            If no node connects.
        """
        end = time.monotonic() + _FIRST_NODE_SECONDS
        while not (nodes := sorted(self.network.get_node_ids())):
            if time.monotonic() > end:
                raise RunError(
                    f"expected at least one node within {_FIRST_NODE_SECONDS:g} seconds, got none; "
                    "start nodes, or set num-supernodes above 0"
                )
            time.sleep(0.05)
        return nodes

    def _push(self, messages: Iterable[Message], ttl: float | None) -> list[str]:
        by_participant: dict[int, Message] = {}
        batch = uuid4().hex
        self._asks = []
        for message in messages:
            participant = message.metadata.dst_node_id
            if participant not in self._sampled:
                raise WireError(
                    f"expected a participant of this round ({list(self._sampled)}), got {participant}"
                )
            if participant in by_participant:
                raise WireError(f"expected one message a participant, got two for {participant}")
            message.metadata.__dict__["_message_id"] = f"{batch}-{participant}"
            by_participant[participant] = message
        contents = {id(message.content): message.content for message in by_participant.values()}
        for key, count in Counter(id(message.content) for message in by_participant.values()).items():
            self.ledger.down(self._phase, _bytes(contents[key]) + _PLAN_BYTES, messages=count)
        nodes = self.nodes()
        occupied = {bundle.node for bundle in self._open.values()}
        free = [node for node in nodes if node not in occupied] or nodes
        bundles = [
            self._pack(node, cohorts, by_participant) for node, cohorts in self._deal(free, by_participant)
        ]
        self._prepare_total(bundles)
        for bundle in bundles:
            first = next(iter(bundle.messages.values())).metadata
            content = self._content(bundle)
            sent = Message(content, bundle.node, first.message_type, ttl=ttl, group_id=first.group_id)
            (message_id,) = list(self.network.push_messages([sent])) or [""]
            if message_id:
                self._open[message_id] = bundle
            else:
                self._leave_out(bundle.plan.participants, "the network did not take the message")
                self._close(bundle)
        return [message.metadata.message_id for message in by_participant.values()]

    def _deal(
        self, nodes: Sequence[int], messages: Mapping[int, Message]
    ) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
        """Yield each node's cohorts: a run of neighbours, because results are summed in cohort order."""
        cohorts = [tuple(p for p in cohort if p in messages) for cohort in self._cohorts]
        cohorts = [cohort for cohort in cohorts if cohort]
        if self.roster is not None:
            yield from ((self.roster[cohort[0]], [cohort]) for cohort in cohorts)
            return
        each, larger = divmod(len(cohorts), len(nodes))
        start = 0
        for index, node in enumerate(nodes[: len(cohorts)]):
            end = start + each + (index < larger)
            yield node, cohorts[start:end]
            start = end

    def _pack(self, node: int, cohorts: Sequence[tuple[int, ...]], messages: Mapping[int, Message]) -> Bundle:
        mine = {p: messages[p] for cohort in cohorts for p in cohort}
        contents: dict[int, int] = {}
        variants = tuple(contents.setdefault(id(message.content), len(contents)) for message in mine.values())
        reply = self.reply if self._phase == "rounds" else "each"
        limits = None
        if reply == "mean" and self.roster is None:
            reach = self._terms.reach_of(next(iter(mine)))
            limits = None if reach is None else reach.limits
        plan = wire.Plan(tuple(cohorts), variants, reply, limits)
        return Bundle(self._phase, self._round, plan, mine, self._terms, node)

    def _prepare_total(self, bundles: Sequence[Bundle]) -> None:
        if not bundles or bundles[0].plan.reply == "each" or self.roster is not None:
            return
        spec = self._terms.spec_of(bundles[0].plan.participants[0])
        total = Total(RoundMean(spec), deque(bundles))
        for bundle in bundles:
            bundle.total = total

    def _content(self, bundle: Bundle) -> RecordDict:
        content = RecordDict()
        count = max(bundle.plan.variants) + 1
        distinct = dict(zip(bundle.plan.variants, bundle.messages.values(), strict=True))
        for index, message in distinct.items():
            for key, record in message.content.items():
                content[wire.numbered(key, index, count)] = record
        content[wire.COHORTS] = ConfigRecord(bundle.plan.to_lists())
        if self.simulation is not None:
            content[wire.SIMULATION] = ConfigRecord(dict(self.simulation))
        return content

    # ------------------------------------------------------------------ receiving

    def _waiting(self) -> list[Bundle]:
        return [bundle for bundle in self._open.values() if not bundle.late]

    def _pull(self) -> None:
        for reply in self.network.pull_messages(list(self._open)):
            bundle = self._open.pop(reply.metadata.reply_to_message_id, None)
            if bundle is None:
                continue
            if reply.has_content():
                self._pass_on(reply.content)
            if bundle.late:
                self._count_late(bundle, reply)
            elif reply.has_error():
                self._leave_out(bundle.plan.participants, f"error reply: {reply.error.reason}")
            else:
                self._take(bundle, reply.content)
            self._close(bundle)

    def _count_late(self, bundle: Bundle, reply: Message) -> None:
        """Name and count a reply that came after its deadline; it is never aggregated."""
        if reply.has_error():
            return
        late = f"late: reply to round {bundle.round}"
        try:
            _, results = _read(bundle.plan, reply.content)
        except Exception as error:
            self._late += self._absent(bundle.plan.participants, f"{late}, which cannot be read: {error}")
            return
        for result in results:
            problem = self._problem_with_numbers(bundle, result)
            if problem is None:
                self._count(bundle, result)
            reason = f"{late}, not used" if problem is None else f"{late}: {problem}"
            self._late += self._absent(result.participants, reason)

    def _take(self, bundle: Bundle, content: RecordDict) -> None:
        """Take a reply's results; whatever is wrong with them costs their participants and nobody else."""
        try:
            answers, results = _read(bundle.plan, content)
        except Exception as error:
            self._leave_out(bundle.plan.participants, f"a reply that cannot be read: {error}")
            return
        for participant, index, reason in zip(
            answers.participants, answers.results, answers.reasons, strict=True
        ):
            if index < 0:
                self._leave_out([participant], reason)
        terms = bundle.terms
        for result in results:
            first = result.participants[0]
            problem = self._problem_with_numbers(bundle, result)
            if problem is None and bundle.total is not None:
                bundle.results.append(result)
                continue
            if problem is None and (spec := terms.spec_of(first)):
                problem = problem_with_arrays(result.content, spec, terms.reach_of(first))
            if problem is None:
                self._make_ready(
                    Message(result.content, reply_to=bundle.messages[first]), result.participants
                )
            self._settle(bundle, result, problem)

    def _problem_with_numbers(self, bundle: Bundle, result: Result) -> str | None:
        """Say what is wrong with the numbers of a result; they are looked at before they are counted."""
        who, steps_of = result.participants, bundle.terms.steps_of
        metrics = record_of(result.content, wire.METRICS, MetricRecord)
        held = self._held[who].tolist() if len(self._held) else [self.limits.examples] * len(who)
        problem = wire.problem_with_metrics(metrics, sum(held), label_counts=bundle.terms.label_counts)
        weight = metrics.get(bundle.terms.weight_key)
        most = self.limits.examples * len(who)
        if problem is None and not (isinstance(weight, int | float) and 0 < weight <= most):
            problem = (
                f"expected {bundle.terms.weight_key}, by which the strategy weighs, above 0 and at most "
                f"{self.limits.examples} (server.max-examples), got {weight!r:.40}"
            )
        if problem is not None:
            return problem
        if not len(self._held):  # nobody told before how many there are
            held = [cast("int", metrics[wire.NUM_EXAMPLES])] * len(who)
        made = sum(result.local_steps)
        if min(result.local_steps) < 0 or made != metrics.get(wire.LOCAL_STEPS, 0):
            told = metrics.get(wire.LOCAL_STEPS, 0)
            return f"expected the same {wire.LOCAL_STEPS} in metrics and answers, got {told} and {made}"
        if steps_of is not None and made > (most := sum(map(steps_of, held))):
            return f"expected at most {most} {wire.LOCAL_STEPS}, which the settings allow, got {made}"
        return None

    def _settle(self, bundle: Bundle, result: Result, problem: str | None) -> None:
        """Count a result, or leave its participants out."""
        if problem is not None:
            self._leave_out(result.participants, problem)
            return
        self._count(bundle, result)
        self.report.answered += result.participants

    def _count(self, bundle: Bundle, result: Result) -> None:
        size = _bytes(result.content) + _ANSWERS_BYTES
        self.ledger.up(bundle.phase, size, sum(result.local_steps), replies=len(result.participants))

    def _close(self, bundle: Bundle) -> None:
        """Add what may be added now: results are summed in cohort order, whatever the order of replies."""
        bundle.done = True
        total = bundle.total
        if total is None:
            return
        while total.waiting and total.waiting[0].done:
            bundle = total.waiting.popleft()
            for result in bundle.results:
                problem = total.mean.add(result.content, bundle.terms.reach_of(result.participants[0]))
                self._settle(bundle, result, problem)
                if problem is not None:
                    continue
                if total.first is None:
                    total.first = bundle.messages[result.participants[0]]
                total.participants += result.participants
            bundle.results = []
        if not total.waiting and total.first is not None:
            self._make_ready(Message(total.mean.result(), reply_to=total.first), total.participants)
            total.first = None

    def _make_ready(self, reply: Message, participants: Sequence[int]) -> None:
        self._ready[reply.metadata.reply_to_message_id] = Ready(reply, tuple(participants))

    def _agreeing(self, ready: Sequence[Ready]) -> list[Message]:
        """Leave out replies whose metrics have other keys than most: a strategy would refuse all of them."""
        shapes = [_shape_of(record_of(one.reply.content, wire.METRICS, MetricRecord)) for one in ready]
        counted = Counter(shapes)
        if len(counted) < 2:
            return [one.reply for one in ready]
        # Of several that are equally frequent: ours, else the one with the fewest metrics.
        ours = set(_OURS.get(self._phase, ()))
        if self._terms.label_counts is not None:
            ours.add(wire.LABEL_COUNTS)
        usual = max(counted, key=lambda s: (counted[s], {key for key, _ in s} == ours, -len(s), s))
        kept: list[Message] = []
        refused: set[int] = set()
        for one, shape in zip(ready, shapes, strict=True):
            if shape == usual:
                kept.append(one.reply)
                continue
            refused.update(one.participants)
            self._leave_out(one.participants, f"other metrics than most: {dict(shape)}, not {dict(usual)}")
        self.report.answered = [p for p in self.report.answered if p not in refused]
        return kept

    def _leave_out(self, participants: Iterable[int], reason: str) -> None:
        self.report.absent += self._absent(participants, reason)

    def _absent(self, participants: Iterable[int], reason: str) -> list[Absent]:
        """Name who is left out, with one line of the reason; the log gets the whole of it, once."""
        left_out = list(participants)
        who = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        line = self._log.warn(f"{self._phase} {self._round}: without participant {who}", reason)
        return [Absent(participant, line) for participant in left_out]

    def _pass_on(self, content: RecordDict) -> None:
        """Log the warnings that a node's reply brought along."""
        texts = record_of(content, wire.WARNINGS, ConfigRecord).get("texts")
        for text in texts[:_MOST_WARNINGS] if isinstance(texts, list) else ():
            self._log.warn("a participant warns", str(text))


_OURS = {
    "rounds": (wire.NUM_EXAMPLES, wire.TRAIN_LOSS, wire.LOCAL_STEPS),
    "teachers": (wire.NUM_EXAMPLES, wire.TRAIN_LOSS, wire.LOCAL_STEPS),
    "evaluate": (wire.NUM_EXAMPLES, wire.EVAL_LOSS, wire.EVAL_ACCURACY),
}
"""The metrics that kdfed's own participants send, by phase; label counts beside them where asked."""


def _read(plan: wire.Plan, content: RecordDict) -> tuple[wire.Answers, list[Result]]:
    """Split a reply into its results, each an ordinary Flower reply."""
    most = 2 * len(plan.participants) + _OTHER_RECORDS
    if len(content) > most:
        raise WireError(f"expected at most {most} records, got {len(content)}")
    told = record_of(content, wire.COHORTS, ConfigRecord)
    if not told:  # a device, or a ClientApp that knows no cohorts
        (participant,) = _only(plan.participants)
        steps = record_of(content, wire.METRICS, MetricRecord).get(wire.LOCAL_STEPS, 0)
        answers = wire.Answers((participant,), (0,), (steps if isinstance(steps, int) else 0,), ("",))
    else:
        answers = wire.Answers.from_lists(told)
    members = answers.members(plan)
    steps_of = dict(zip(answers.participants, answers.local_steps, strict=True))
    return answers, [
        Result(who, _result(content, index, len(members)), [steps_of[p] for p in who])
        for index, who in sorted(members.items())
    ]


_OTHER_RECORDS = 100  # of a ClientApp that sends more than ours


def _only(participants: tuple[int, ...]) -> tuple[int, ...]:
    if len(participants) != 1:
        raise WireError(f"expected a reply with a {wire.COHORTS} record for {len(participants)} participants")
    return participants


def _result(content: RecordDict, index: int, count: int) -> RecordDict:
    result = RecordDict()
    arrays = record_of(content, wire.numbered(wire.ARRAYS, index, count), ArrayRecord)
    metrics = record_of(content, wire.numbered(wire.METRICS, index, count), MetricRecord)
    if arrays:
        result[wire.ARRAYS] = arrays
    if not metrics:
        raise WireError(f"expected a {wire.METRICS} record in every result, got none in result {index}")
    result[wire.METRICS] = metrics
    return result


def _shape_of(metrics: MetricRecord) -> tuple[tuple[str, int], ...]:
    """Return the metrics' keys with their lengths: -1 for a number, else that of the list."""
    return tuple(
        sorted((key, len(value) if isinstance(value, list) else -1) for key, value in metrics.items())
    )


@dataclass(frozen=True)
class Held:
    """What a node's hello told: how many examples each participant holds, int64 [P], and who holds which."""

    each: np.ndarray
    digest: str


def _hello(reply: Message, versions: str, participants: int | None, most: int) -> Held:
    """Return what a node tells, once it can be."""
    node = f"node {reply.metadata.src_node_id}"
    config = record_of(reply.content, wire.CONFIG, ConfigRecord)
    if config.get("versions") != versions:
        theirs = one_line(config.get("versions"))
        raise RunError(f"expected the server's versions {versions} on every node, got {theirs} from {node}")
    metrics = record_of(reply.content, wire.METRICS, MetricRecord)
    count, examples, each = (metrics.get(key) for key in (wire.PARTICIPANTS, wire.NUM_EXAMPLES, wire.HELD))
    digest = config.get(wire.DIGEST)
    if not (
        type(count) is int
        and type(examples) is int
        and isinstance(digest, str)
        and isinstance(each, list)
        and all(type(held) is int for held in each)
    ):
        raise RunError(
            "expected every node to tell the number of participants, of their examples, those of each and a "
            f"digest, got {count!r:.40}, {examples!r:.40}, {each!r:.40} and {digest!r:.80} from {node}"
        )
    if len(each) != count or count != (count if participants is None else participants) or not each:
        raise RunError(
            f"expected {participants or 'some'} participants, got {count} and the examples of {len(each)} "
            f"from {node}; give all nodes the same data"
        )
    if not 0 <= min(each) <= max(each) <= most or sum(each) != examples:
        raise RunError(
            f"expected from 0 to {most} examples of each participant (server.max-examples), got {min(each)} "
            f"to {max(each)}, {examples} in all, from {node}"
        )
    return Held(np.array(each, dtype=np.int64), one_line(digest))


def _bytes(content: RecordDict) -> int:
    """Return the bytes of a logical message: its arrays, metrics and config."""
    return sum(record.count_bytes() for record in content.values())


def _record_bytes(lists: wire.Lists) -> int:
    return ConfigRecord(lists).count_bytes()


# What a device's message and reply hold besides the strategy's records: for one participant always the same.
_PLAN_BYTES = _record_bytes(wire.Plan(((0,),), (0,), "mean").to_lists())
_ANSWERS_BYTES = _record_bytes(wire.Answers((0,), (0,), (1,), ("",)).to_lists())
