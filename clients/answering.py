"""One network message, many participants: the work of each cohort, and one reply.

A handler reads a message of its type once, and returns what does the work of some participants of a cohort.
Here it is called for each cohort; what comes of it is checked, summed or kept for each participant, and put
into a reply that says who answered. One participant's failure costs only that one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Generic, TypeAlias, TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from kdfed.arrays import Spec, problem_with_arrays, spec_of
from kdfed.averaging import WeightedMean
from kdfed.cohort import state_at
from kdfed.cohort.folded import Stack
from kdfed.errors import ParticipantError, one_line
from kdfed.limits import Limits, Reach, numpy_of
from kdfed.messages import ARRAYS, COHORTS, METRICS, Answers, Asked, Cohorts, item, numbered, record_of
from kdfed.metrics import LOCAL_STEPS, NUM_EXAMPLES, Metrics, problem_with_metrics
from kdfed.models import State
from kdfed.named import ends_program
from kdfed.reasons import reason_of

log = logging.getLogger("kdfed.clients")


M = TypeVar("M", bound=Asked)


@dataclass(frozen=True)
class Contribution:
    """What some participants of a cohort did together.

    Parameters
    ----------
    members
        Their numbers, R of them.
    arrays
        Weights or logits to send, each [R, *shape], where only their mean is sent on any device; empty for
        none.
    metrics
        One for each of R; ``num-examples`` at least.
    sums
        Instead of ``arrays``: their sum, each times its ``num-examples``; float64, each [*shape], and finite.
    """

    members: Sequence[int]
    arrays: Stack
    metrics: Sequence[Metrics]
    sums: State = field(default_factory=dict)

    def of(self, row: int) -> State:
        """Return one participant's arrays."""
        return state_at(self.arrays, row)


CohortWork: TypeAlias = Callable[[Sequence[int], bool], Iterable[Contribution]]
"""Does the work of participants of one cohort, part by part, in any order. Given are their numbers, and
whether sums are enough."""


def answer(
    message: Message,
    kind: type[M],
    begin: Callable[[M], CohortWork],
    expected: Callable[[M], Spec],
) -> Message:
    """Do the work of every participant of a message; one participant's failure costs only that one.

    Parameters
    ----------
    message
        From the server.
    kind
        What it is.
    begin
        Given what was asked, returns what does it for the participants of a cohort.
    expected
        Shapes and dtypes that a participant's result must have to be summed.

    Returns
    -------
    Message
        One result per cohort or participant, and who was left out and why; a plain reply where the message
        does not say who it is for.
    """
    record = record_of(message.content, COHORTS, ConfigRecord)
    if not record:
        (alone,) = begin(kind.from_record(message.content))([0], False)
        return Message(_records([(alone.of(0), alone.metrics[0])]), reply_to=message)

    cohorts = Cohorts.from_record(record)
    count = max(cohorts.variants) + 1
    variants = [
        _Variant(item(message.content, index, count), kind, begin, expected, cohorts)
        for index in range(count)
    ]
    results: list[tuple[State, Metrics]] = []
    rows: dict[int, tuple[int, int, str]] = {}  # participant: result, steps, reason
    variant_of = iter(cohorts.variants)
    for cohort in cohorts.cohorts:
        members: dict[int, list[int]] = {}
        for participant in cohort:
            members.setdefault(next(variant_of), []).append(participant)
        parts = [part for index, own in members.items() for part in variants[index].do(own)]
        for part in parts:
            rows |= {participant: (-1, 0, reason) for participant, reason in part.problems.items()}
        finished = {participant: part for part in parts for participant in part.metrics}
        for participant, part in sorted(finished.items(), key=itemgetter(0)):
            rows[participant] = (len(results), int(_number(part.metrics[participant], LOCAL_STEPS)), "")
            if cohorts.reply == "each":
                results.append((part.each[participant], part.metrics[participant]))
        if cohorts.reply == "mean" and finished:
            results.append(_mean([part for part in parts if part.metrics]))
    answers = [(participant, *rows[participant]) for participant in cohorts.participants]
    content = _records(results)
    content[COHORTS] = Answers(*zip(*_reasons_once(answers), strict=True)).to_record()
    return Message(content, reply_to=message)


def _reasons_once(answers: Sequence[tuple[int, int, int, str]]) -> list[tuple[int, int, int, str]]:
    """Leave each distinct reason whole where it comes first; a line stands for it in the rest."""
    known: set[str] = set()
    shorter = []
    for participant, result, steps, reason in answers:
        if reason:
            line = one_line(reason)
            reason = line if line in known else reason
            known.add(line)
        shorter.append((participant, result, steps, reason))
    return shorter


def _records(results: Sequence[tuple[State, Metrics]]) -> RecordDict:
    content = RecordDict()
    for index, (arrays, metrics) in enumerate(results):
        if arrays:
            content[numbered(ARRAYS, index, len(results))] = ArrayRecord(dict(arrays))
        content[numbered(METRICS, index, len(results))] = MetricRecord(dict(metrics))
    return content


# ----------------------------------------------------------------------------- a cohort's work


@dataclass(frozen=True, eq=False)
class _Checked:
    """What is kept of one contribution.

    Parameters
    ----------
    metrics
        By participant, without those that are left out.
    problems
        Why others are left out.
    each
        Everybody's arrays, for a reply of single results.
    sums
        The sums of arrays, each times its ``num-examples``, in float64, for a reply of means.
    spec
        Of the arrays that were summed.
    """

    metrics: dict[int, Metrics]
    problems: dict[int, str]
    each: dict[int, State] = field(default_factory=dict)
    sums: State = field(default_factory=dict)
    spec: Spec = field(default_factory=dict)


@dataclass(frozen=True)
class _Expected:
    """What work must be like: shapes and dtypes, and how far from what was sent; None for no bound."""

    spec: Spec
    reach: Reach | None

    @classmethod
    def of(cls, spec: Spec, sent: State, limits: Limits | None) -> _Expected:
        """Return what is expected for these weights; no limits where the server looks at each."""
        if limits is None or spec_of(sent) != spec:
            return cls(spec, None)
        return cls(spec, Reach(numpy_of(sent), limits))

    @property
    def examples(self) -> int | None:
        """The most examples of one participant; None for no limit."""
        return None if self.reach is None else self.reach.limits.examples


class _Variant(Generic[M]):
    """One of a message's distinct contents; it is read when the first of its participants works."""

    def __init__(
        self,
        content: RecordDict,
        kind: type[M],
        begin: Callable[[M], CohortWork],
        expected: Callable[[M], Spec],
        cohorts: Cohorts,
    ) -> None:
        self._content, self._kind, self._begin, self._spec_of = content, kind, begin, expected
        self._limits, self._sums = cohorts.limits, cohorts.reply == "mean"
        self._work: CohortWork | None = None
        self._expected = _Expected({}, None)

    def do(self, members: Sequence[int]) -> list[_Checked]:
        """Have participants work together; if that fails, each alone, so that it costs only who failed."""
        try:
            work = self._work or self._read()
            check = _summed if self._sums else _each
            return [check(part, self._expected) for part in work(members, self._sums)]
        except (Exception, SystemExit) as error:  # whatever a foreign model raises
            if ends_program(error):
                raise
            reason = reason_of(error)
        if len(members) == 1:
            return [_Checked({}, {members[0]: reason})]
        # After the exception is gone: with what it held, and as nobody's cause.
        log.warning("a cohort of %d failed together (%s): one by one", len(members), one_line(reason, 100))
        return [part for member in members for part in self.do([member])]

    def _read(self) -> CohortWork:
        asked = self._kind.from_record(self._content)
        self._expected = _Expected.of(self._spec_of(asked), asked.arrays, self._limits)
        self._work = self._begin(asked)
        return self._work


def _each(part: Contribution, expected: _Expected) -> _Checked:
    problems = _problems(part, expected)
    rows = {member: row for row, member in enumerate(part.members) if member not in problems}
    metrics = {member: part.metrics[row] for member, row in rows.items()}
    return _Checked(metrics, problems, each={member: part.of(row) for member, row in rows.items()})


def _summed(part: Contribution, expected: _Expected) -> _Checked:
    """Sum a contribution's arrays at once, while they lie in the cache.

    A sum is finite only if every number is: faults are looked for where it is not.

    Raises
    ------
    ParticipantError
        If sums exceed what participants within the limits can reach: each of them must be looked at.
    """
    spec = expected.spec
    if part.sums:
        _check_sums(part, expected)
        metrics = dict(zip(part.members, part.metrics, strict=True))
        return _Checked(metrics, {}, sums=part.sums, spec=spec)
    problems = _problems_with_metrics(part, expected)
    sums: State = {}
    if not problems and spec_of(part.of(0)) == spec and not _far(part, expected):
        sums = _weighted_sums(part, range(len(part.members)))
    if not sums or not _finite(sums):
        problems = _problems(part, expected)
        sums = _weighted_sums(part, [r for r, member in enumerate(part.members) if member not in problems])
    metrics = {m: own for m, own in zip(part.members, part.metrics, strict=True) if m not in problems}
    return _Checked(metrics, problems, sums=sums, spec=spec)


def _check_sums(part: Contribution, expected: _Expected) -> None:
    problems = _problems_with_metrics(part, expected)
    if not problems and expected.reach is not None:
        total = sum(_number(metrics, NUM_EXAMPLES) for metrics in part.metrics)
        problem = expected.reach.problem_with({k: (v / total).numpy() for k, v in part.sums.items()})
        problems = {} if problem is None else {part.members[0]: problem}
    if problems:
        raise ParticipantError(next(iter(problems.values())))


def _problems(part: Contribution, expected: _Expected) -> dict[int, str]:
    """Say what is wrong with participants' work."""
    problems = _problems_with_metrics(part, expected)
    finite = _finite(part.arrays)  # if not, a sum may only have overflowed: look again
    # All have the shapes of the first; where everything is finite there is nothing more to look for.
    first = problem_with_arrays(part.of(0), expected.spec)
    for row, member in enumerate(part.members):
        problem = first if finite or row == 0 else problem_with_arrays(part.of(row), expected.spec)
        if problem is not None:
            problems.setdefault(member, problem)
    if len(problems) < len(part.members):
        for member, problem in _far(part, expected).items():
            problems.setdefault(member, problem)
    return problems


def _far(part: Contribution, expected: _Expected) -> dict[int, str]:
    """Say whose arrays lie too far from those that were sent; of the shapes that were expected."""
    reach = expected.reach
    if reach is None:
        return {}
    device = next((values.device for values in part.arrays.values()), None)
    near = torch.ones(len(part.members), dtype=torch.bool, device=device)
    for keys, size in reach.quick():
        squares = torch.zeros(len(part.members), device=device)
        for key in keys:
            squares += torch.linalg.vector_norm(_rows(part.arrays[key]), dim=1).square().float()
        near &= squares.sqrt() <= size
    found = {
        part.members[row]: reach.problem_with(numpy_of(part.of(row)))
        for row in (~near).nonzero().flatten().tolist()
    }
    return {member: problem for member, problem in found.items() if problem is not None}


def _finite(arrays: Stack) -> bool:
    """Tell whether the sums of arrays are finite, and so every number in them."""
    return all(bool(values.sum().isfinite()) for values in arrays.values())


def _problems_with_metrics(part: Contribution, expected: _Expected) -> dict[int, str]:
    found = (
        (member, problem_with_metrics(metrics, expected.examples))
        for member, metrics in zip(part.members, part.metrics, strict=True)
    )
    return {member: problem for member, problem in found if problem is not None}


# ----------------------------------------------------------------------------- a cohort's mean


def _weighted_sums(part: Contribution, rows: Sequence[int]) -> State:
    """Sum the arrays of some rows, each times its ``num-examples``, in float64."""
    if not rows:
        return {}
    weights = [_number(part.metrics[row], NUM_EXAMPLES) for row in rows]
    weighting = torch.tensor(weights, dtype=torch.float64)
    every = len(rows) == len(part.members)
    return {
        key: _dot(weighting, values if every else values[list(rows)]) for key, values in part.arrays.items()
    }


def _dot(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum a stack [R, *shape], each times its weight; float64 [*shape]."""
    flat, weights = _rows(values), weights.to(values.device)
    size = _CHUNK if values.device.type == "cpu" else _LARGE_CHUNK
    if flat.shape[1] <= size:
        return (weights @ flat.double()).view(values.shape[1:])
    parts = [weights @ chunk.double() for chunk in torch.split(flat, size, dim=1)]
    return torch.cat(parts).view(values.shape[1:])


def _rows(values: torch.Tensor) -> torch.Tensor:
    """Return a stack [R, *shape] as [R, N]."""
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)


_CHUNK = 8192  # numbers of each participant that are summed at a time: in float64 they stay in the cache
_LARGE_CHUNK = 2**18  # on a GPU: each chunk starts its kernels


def _mean(parts: Sequence[_Checked]) -> tuple[State, Metrics]:
    """Return a cohort's mean, weighted by ``num-examples``, which add up like the steps."""
    spec = parts[0].spec
    mean = WeightedMean(spec)
    for part in parts:
        weights = {member: _number(metrics, NUM_EXAMPLES) for member, metrics in part.metrics.items()}
        mean.add_sums(part.sums, sum(weights.values()))
        for member, metrics in part.metrics.items():
            mean.add_metrics(metrics, weights[member])
    state = {
        key: torch.from_numpy(values).to(getattr(torch, spec[key][1]))
        for key, values in mean.arrays().items()
    }
    return state, mean.metrics()


def _number(metrics: Metrics, key: str) -> float:
    value = metrics.get(key, 0)
    if not isinstance(value, int | float):
        raise ParticipantError(f"expected a number as {key}, got {value!r}")
    return float(value)
