"""What comes back: replies are read, checked, counted and summed; who is left out is named.

Whatever is wrong with a reply costs its participants and nobody else. Results are summed in cohort order,
whatever the order in which replies arrive, and can be dropped as soon as they are. Nothing here knows a
network: an inbox is given parcels (:mod:`.parcels`) and replies.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from kdfed.errors import MessageError
from kdfed.ledger import Ledger
from kdfed.limits import Limits
from kdfed.messages import (
    ARRAYS,
    COHORTS,
    FIXED,
    METRICS,
    WARNINGS,
    Answers,
    Cohorts,
    count_bytes,
    numbered,
    record_of,
)
from kdfed.metrics import (
    EVAL_ACCURACY,
    EVAL_LOSS,
    LABEL_COUNTS,
    LOCAL_STEPS,
    NUM_EXAMPLES,
    TRAIN_LOSS,
    problem_with_metrics,
)
from kdfed.reasons import Once
from kdfed.records import Absent
from strategies.parcels import Exchange, Parcel, Result
from strategies.round_mean import RoundMean, problem_with_result

_MOST_WARNINGS = 20
_OTHER_RECORDS = 100  # of a ClientApp that sends more than ours


@dataclass
class Report:
    """What an exchange brought.

    Parameters
    ----------
    answered
        Participants whose work was taken, in order.
    absent
        Participants that were left out, with the reason.
    refused
        How many of those had sent something, in time, which was not taken.
    """

    answered: list[int] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True)
class _Ready:
    """A checked result, and whose work is in it."""

    reply: Message
    participants: tuple[int, ...]


@dataclass
class _Total:
    """The mean of a round: parcels in cohort order that are not added yet, and whose work has been."""

    mean: RoundMean
    waiting: deque[Parcel]
    first: Message | None = None
    participants: list[int] = field(default_factory=list)


class Inbox:
    """Takes the replies of an arm's exchanges.

    Parameters
    ----------
    ledger
        Filled with every logical reply.
    limits
        How much a participant may say.
    held
        Examples of each participant, int64 [P], as hello told. Default: nobody told.
    log
        Where reasons and warnings are logged, each distinct text once. Default: a new one.
    """

    def __init__(
        self, ledger: Ledger, limits: Limits, held: np.ndarray | None = None, log: Once | None = None
    ) -> None:
        self.report = Report()
        self._log = log or Once(logging.getLogger("kdfed.strategies"))
        self._ledger, self._limits, self._held = ledger, limits, held
        self._exchange: Exchange | None = None
        self._totals: dict[Parcel, _Total] = {}
        self._ready: dict[str, _Ready] = {}
        self._late: list[Absent] = []

    def begin(self, exchange: Exchange) -> None:
        """Begin an exchange, with an empty report."""
        self._exchange, self.report = exchange, Report()

    def expect(self, parcels: Sequence[Parcel]) -> None:
        """Get ready for the replies of parcels that are sent now, in cohort order."""
        if parcels and parcels[0].cohorts.reply == "mean":
            spec = parcels[0].exchange.spec_of(parcels[0].participants[0])
            total = _Total(RoundMean(spec), deque(parcels))
            self._totals |= dict.fromkeys(parcels, total)

    # ------------------------------------------------------------------ taking replies

    def take(self, parcel: Parcel, reply: Message) -> None:
        """Take the reply to a parcel; nothing else will come of it."""
        if reply.has_content():
            pass_warnings_on(reply.content, self._log)
        if parcel.late:
            self._count_late(parcel, reply)
        elif reply.has_error():
            self.leave_out(parcel.participants, f"error reply: {reply.error.reason}")
        else:
            self._read(parcel, reply.content)
        self._settle(parcel)

    def give_up(self, parcel: Parcel, reason: str) -> None:
        """Wait no longer for a parcel: its participants are left out."""
        self.leave_out(parcel.participants, reason)
        self._settle(parcel)

    def leave_out(self, participants: Iterable[int], reason: str) -> None:
        """Name who is left out of the exchange, and why."""
        self.report.absent += self._absent(participants, reason)

    def replies(self, message_ids: Collection[str]) -> list[Message]:
        """Return the replies to these messages that are ready, in participant order, each once.

        A round's mean answers the message of its first participant that answered.
        """
        return [ready.reply for ready in self._pop(message_ids)]

    def conclude(self, message_ids: Collection[str]) -> list[Message]:
        """Return the replies as :meth:`replies` does, without those that do not fit the rest.

        The report is then complete.
        """
        replies = self._agreeing(self._pop(message_ids))
        if self._exchange is not None and self._exchange.phase != "evaluate":
            self.report.absent += self._late
            self._late = []
        self.report.answered.sort()
        self.report.absent.sort(key=lambda absent: absent.participant)
        return replies

    def _pop(self, message_ids: Collection[str]) -> list[_Ready]:
        wanted = set(message_ids)
        ready = [self._ready.pop(key) for key in list(self._ready) if key in wanted]
        return sorted(ready, key=lambda one: one.participants)

    def _count_late(self, parcel: Parcel, reply: Message) -> None:
        """Name and count a reply that came after its deadline; it is never aggregated."""
        if reply.has_error():
            return
        late = f"late: reply to round {parcel.exchange.round}"
        try:
            _, results = read_reply(parcel.cohorts, reply.content)
        except Exception as error:
            self._late += self._absent(parcel.participants, f"{late}, which cannot be read: {error}")
            return
        for result in results:
            problem = self._problem_with_numbers(parcel.exchange, result)
            if problem is None:
                self._count(parcel.exchange, result)
            reason = f"{late}, not used" if problem is None else f"{late}: {problem}"
            self._late += self._absent(result.participants, reason)

    def _read(self, parcel: Parcel, content: RecordDict) -> None:
        """Read a reply: results are summed later, or are ready if they fit what was asked for."""
        try:
            answers, results = read_reply(parcel.cohorts, content)
        except Exception as error:
            self._refuse(parcel.participants, f"a reply that cannot be read: {error}")
            return
        rows = zip(answers.participants, answers.results, answers.reasons, strict=True)
        for participant, index, reason in rows:
            if index < 0:
                self.leave_out([participant], reason)
        exchange = parcel.exchange
        for result in results:
            first = result.participants[0]
            problem = self._problem_with_numbers(exchange, result)
            if problem is None and parcel in self._totals:
                parcel.results.append(result)
                continue
            if problem is None and (spec := exchange.spec_of(first)):
                problem = problem_with_result(result.content, spec, exchange.reach_of(first))
            if problem is None and exchange.take is not None:
                problem = exchange.take(first, result.content)
            elif problem is None:
                self._make_ready(
                    Message(result.content, reply_to=parcel.messages[first]), result.participants
                )
            self._answered(exchange, result, problem)

    def _settle(self, parcel: Parcel) -> None:
        """Sum what may be summed now: results are added in cohort order, whatever the order of replies."""
        parcel.settled = True
        total = self._totals.pop(parcel, None)
        if total is None:
            return
        while total.waiting and total.waiting[0].settled:
            parcel = total.waiting.popleft()
            for result in parcel.results:
                first = result.participants[0]
                problem = total.mean.add(result.content, parcel.exchange.reach_of(first))
                self._answered(parcel.exchange, result, problem)
                if problem is None:
                    total.first = total.first or parcel.messages[first]
                    total.participants += result.participants
            parcel.results = []
        if not total.waiting and total.first is not None:
            self._make_ready(Message(total.mean.result(), reply_to=total.first), total.participants)

    def _make_ready(self, reply: Message, participants: Sequence[int]) -> None:
        self._ready[reply.metadata.reply_to_message_id] = _Ready(reply, tuple(participants))

    # ------------------------------------------------------------------ checking and counting

    def _problem_with_numbers(self, exchange: Exchange, result: Result) -> str | None:
        """Say what is wrong with the numbers of a result; they are looked at before they are counted."""
        members, most = result.participants, self._limits.examples
        metrics = record_of(result.content, METRICS, MetricRecord)
        held = [most] * len(members) if self._held is None else self._held[members].tolist()
        problem = problem_with_metrics(metrics, sum(held), exchange.label_counts)
        weight = metrics.get(exchange.weight_key)
        if problem is None and not (isinstance(weight, int | float) and 0 < weight <= most * len(members)):
            problem = (
                f"expected {exchange.weight_key}, by which the strategy weighs, above 0 and at most "
                f"{most} (server.max-examples), got {weight!r:.40}"
            )
        if problem is not None:
            return problem
        if self._held is None:
            held = [cast("int", metrics[NUM_EXAMPLES])] * len(members)
        made, claimed = sum(result.local_steps), metrics.get(LOCAL_STEPS, 0)
        if min(result.local_steps) < 0 or made != claimed:
            return f"expected the same {LOCAL_STEPS} in metrics and answers, got {claimed} and {made}"
        if exchange.steps_of is not None and made > (allowed := sum(map(exchange.steps_of, held))):
            return f"expected at most {allowed} {LOCAL_STEPS}, which the settings allow, got {made}"
        return None

    def _answered(self, exchange: Exchange, result: Result, problem: str | None) -> None:
        """Count a result, or leave its participants out."""
        if problem is not None:
            self._refuse(result.participants, problem)
            return
        self._count(exchange, result)
        self.report.answered += result.participants

    def _refuse(self, participants: Sequence[int], reason: str) -> None:
        self.report.refused += len(participants)
        self.leave_out(participants, reason)

    def _count(self, exchange: Exchange, result: Result) -> None:
        size = bytes_of(result.content)
        self._ledger.up(exchange.phase, size, sum(result.local_steps), replies=len(result.participants))

    def _agreeing(self, ready: Sequence[_Ready]) -> list[Message]:
        """Leave out replies whose metrics have other keys than most: a strategy would refuse all of them."""
        shapes = [_shape_of(record_of(one.reply.content, METRICS, MetricRecord)) for one in ready]
        counted = Counter(shapes)
        if len(counted) < 2 or self._exchange is None:
            return [one.reply for one in ready]
        # On a tie: ours, else the one with the fewest metrics.
        ours = set(_OURS.get(self._exchange.phase, ()))
        if self._exchange.label_counts is not None:
            ours.add(LABEL_COUNTS)
        usual = max(counted, key=lambda s: (counted[s], {key for key, _ in s} == ours, -len(s), s))
        agreeing: list[Message] = []
        refused: set[int] = set()
        for one, shape in zip(ready, shapes, strict=True):
            if shape == usual:
                agreeing.append(one.reply)
                continue
            refused.update(one.participants)
            self.leave_out(one.participants, f"other metrics than most: {dict(shape)}, not {dict(usual)}")
        self.report.answered = [p for p in self.report.answered if p not in refused]
        return agreeing

    def _absent(self, participants: Iterable[int], reason: str) -> list[Absent]:
        """Name who is left out, with one line of the reason; the log gets the whole of it, once."""
        left_out = list(participants)
        names = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        line = self._log.warn(f"{self._exchange}: without participant {names}", reason)
        return [Absent(participant, line) for participant in left_out]


_OURS = {
    "rounds": (NUM_EXAMPLES, TRAIN_LOSS, LOCAL_STEPS),
    "teachers": (NUM_EXAMPLES, TRAIN_LOSS, LOCAL_STEPS),
    "evaluate": (NUM_EXAMPLES, EVAL_LOSS, EVAL_ACCURACY),
}
"""The metrics that kdfed's own participants send, by phase; label counts beside them where asked. Statistics
are taken as they come: nobody compares their metrics."""


def _shape_of(metrics: MetricRecord) -> tuple[tuple[str, int], ...]:
    """Return the metrics' keys with their lengths: -1 for a number, else that of the list."""
    return tuple(
        sorted((key, len(value) if isinstance(value, list) else -1) for key, value in metrics.items())
    )


def read_reply(asked: Cohorts, content: RecordDict) -> tuple[Answers, list[Result]]:
    """Split a reply into its results, each an ordinary Flower reply.

    Raises
    ------
    MessageError
        If it is no reply to those who were asked.
    """
    most = 2 * len(asked.participants) + _OTHER_RECORDS
    if len(content) > most:
        raise MessageError(f"expected at most {most} records, got {len(content)}")
    record = record_of(content, COHORTS, ConfigRecord)
    if record:
        answers = Answers.from_record(record)
    elif len(asked.participants) == 1:  # a device's, or of a ClientApp that knows no cohorts
        steps = record_of(content, METRICS, MetricRecord).get(LOCAL_STEPS, 0)
        answers = Answers(asked.participants, (0,), (steps if isinstance(steps, int) else 0,), ("",))
    else:
        raise MessageError(
            f"expected a reply with a {COHORTS} record for {len(asked.participants)} participants"
        )
    members = answers.members(asked)
    steps_of = dict(zip(answers.participants, answers.local_steps, strict=True))
    results = []
    for index, participants in sorted(members.items()):
        result = _result(content, index, len(members))
        results.append(Result(participants, result, [steps_of[p] for p in participants]))
    return answers, results


def _result(content: RecordDict, index: int, count: int) -> RecordDict:
    arrays = record_of(content, numbered(ARRAYS, index, count), ArrayRecord)
    metrics = record_of(content, numbered(METRICS, index, count), MetricRecord)
    if not metrics:
        raise MessageError(f"expected a {METRICS} record in every result, got none in result {index}")
    return RecordDict({**({ARRAYS: arrays} if arrays else {}), METRICS: metrics})


def pass_warnings_on(content: RecordDict, log: Once) -> None:
    """Log the warnings that a node's reply brought along."""
    texts = record_of(content, WARNINGS, ConfigRecord).get("texts")
    for text in texts[:_MOST_WARNINGS] if isinstance(texts, list) else ():
        log.warn("a participant warns", str(text))


def bytes_of(content: RecordDict) -> int:
    """Return the bytes of a logical message: its arrays, metrics and config, without fixed weights."""
    return sum(count_bytes(record) for key, record in content.items() if key != FIXED)
