"""One message, many participants: unpack a message into tasks, and cohorts' results into one reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from kdfed import wire
from kdfed.cohort import state_at
from kdfed.cohort.folded import Stack
from kdfed.errors import ParticipantError, one_line
from kdfed.limits import Limits, Reach, numpy_of
from kdfed.models import State
from kdfed.named import ends_program
from kdfed.reasons import reason_of

log = logging.getLogger("kdfed.clients")

Metrics: TypeAlias = dict[str, int | float | list[float]]


@dataclass(frozen=True)
class Task:
    """What participants are asked to do.

    Parameters
    ----------
    arrays
        The received weights; empty when none were sent.
    config
        The settings of its handler.
    transfer
        Transfer examples as stored (``inputs``); empty when none were sent.
    sums
        Whether work may come as sums.
    limits
        What each participant's work must keep to; None where the server looks at each.
    """

    arrays: State
    config: Mapping[str, Any]
    transfer: State
    sums: bool
    limits: Limits | None = None


@dataclass(frozen=True)
class Work:
    """What some participants of a cohort did together.

    Parameters
    ----------
    members
        Their numbers, R of them.
    arrays
        Weights or logits to send, each [R, *shape]; empty for none.
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


CohortWork: TypeAlias = Callable[[Sequence[int]], Iterable[Work]]
"""Does the work of participants of one cohort, given their numbers: part by part, in any order."""


def answer(
    message: Message, begin: Callable[[Task], CohortWork], expected: Callable[[Task], wire.Spec]
) -> Message:
    """Do the work of every participant of a message; one participant's failure costs only that one.

    Parameters
    ----------
    message
        From the server.
    begin
        Reads a task once, and returns what does it for the participants of a cohort.
    expected
        Shapes and dtypes that a participant's result must have to be summed.

    Returns
    -------
    Message
        For a device's message a plain reply. For a simulation's message one result per cohort or
        participant, and who was left out and why.
    """
    plan, tasks = _unpack(message.content)
    if plan is None:
        (task,) = tasks
        (alone,) = begin(task)([int(task.config.get("participant", 0))])
        return Message(_records([(alone.of(0), alone.metrics[0])]), reply_to=message)

    keep = _each if plan.reply == "each" else _summed
    kinds = [_Kind(task, begin, expected, keep) for task in tasks]
    results: list[tuple[State, Metrics]] = []
    rows: dict[int, tuple[int, int, str]] = {}  # participant: result, steps, reason
    variant = iter(plan.variants)
    for cohort in plan.cohorts:
        members: dict[int, list[int]] = {}
        for participant in cohort:
            members.setdefault(next(variant), []).append(participant)
        parts = [part for key, own in members.items() for part in kinds[key].do(own)]
        for part in parts:
            rows |= {participant: (-1, 0, reason) for participant, reason in part.problems.items()}
        finished = {participant: part for part in parts for participant in part.metrics}
        for participant, part in sorted(finished.items(), key=itemgetter(0)):
            rows[participant] = (len(results), _steps(part.metrics[participant]), "")
            if plan.reply == "each":
                results.append((part.each[participant], part.metrics[participant]))
        if plan.reply != "each" and finished:
            results.append(_mean(parts))
    answers = [(participant, *rows[participant]) for participant in plan.participants]
    content = _records(results)
    content[wire.COHORTS] = ConfigRecord(wire.Answers(*zip(*_whole_once(answers), strict=True)).to_lists())
    return Message(content, reply_to=message)


def _whole_once(answers: Sequence[tuple[int, int, int, str]]) -> list[tuple[int, int, int, str]]:
    """Leave each distinct reason whole where it comes first; a line stands for it in the rest."""
    told: set[str] = set()
    shorter = []
    for participant, result, steps, reason in answers:
        if reason:
            line = one_line(reason)
            reason = line if line in told else reason
            told.add(line)
        shorter.append((participant, result, steps, reason))
    return shorter


# ----------------------------------------------------------------------------- a cohort's work


@dataclass(frozen=True, eq=False)
class _Part:
    """What is kept of one piece of work.

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
    dtypes
        Of the arrays that were summed.
    """

    metrics: dict[int, Metrics]
    problems: dict[int, str]
    each: dict[int, State] = field(default_factory=dict)
    sums: State = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)


@dataclass(frozen=True)
class _Expected:
    """What work must be like: shapes and dtypes, and how far from what was sent; None for no bound."""

    spec: wire.Spec
    reach: Reach | None

    @classmethod
    def of(cls, task: Task, spec: wire.Spec) -> _Expected:
        """Return what is expected of a task's work."""
        if task.limits is None or wire.spec_of(task.arrays) != spec:
            return cls(spec, None)
        return cls(spec, Reach(numpy_of(task.arrays), task.limits))

    @property
    def examples(self) -> int | None:
        """The most examples of one participant; None for no limit."""
        return None if self.reach is None else self.reach.limits.examples


def _each(work: Work, expected: _Expected) -> _Part:
    problems = _problems(work, expected)
    rows = {member: row for row, member in enumerate(work.members) if member not in problems}
    metrics = {member: work.metrics[row] for member, row in rows.items()}
    return _Part(metrics, problems, each={member: work.of(row) for member, row in rows.items()})


def _summed(work: Work, expected: _Expected) -> _Part:
    """Sum a work's arrays at once, while they lie in the cache.

    A sum is finite only if every number is: faults are looked for where it is not.

    Raises
    ------
    ParticipantError
        If work came as sums that nobody can have who kept to the limits: each participant must be looked at.
    """
    spec = expected.spec
    dtypes = {key: getattr(torch, dtype) for key, (_, dtype) in spec.items()}
    if work.sums:
        _check_sums(work, expected)
        return _Part(dict(zip(work.members, work.metrics, strict=True)), {}, sums=work.sums, dtypes=dtypes)
    problems = _problems_with_metrics(work, expected)
    sums: State = {}
    if not problems and wire.spec_of(work.of(0)) == spec and not _far(work, expected):
        sums = _weighted_sums(work, range(len(work.members)))
    if not sums or not _finite(sums):
        problems = _problems(work, expected)
        sums = _weighted_sums(work, [r for r, member in enumerate(work.members) if member not in problems])
    metrics = {m: own for m, own in zip(work.members, work.metrics, strict=True) if m not in problems}
    return _Part(metrics, problems, sums=sums, dtypes=dtypes)


def _check_sums(work: Work, expected: _Expected) -> None:
    problems = _problems_with_metrics(work, expected)
    if not problems and expected.reach is not None:
        total = sum(_number(metrics, wire.NUM_EXAMPLES) for metrics in work.metrics)
        problem = expected.reach.problem_with({k: (v / total).numpy() for k, v in work.sums.items()})
        problems = {} if problem is None else {work.members[0]: problem}
    if problems:
        raise ParticipantError(next(iter(problems.values())))


class _Kind:
    """One of a message's distinct contents."""

    def __init__(
        self,
        task: Task,
        begin: Callable[[Task], CohortWork],
        expected: Callable[[Task], wire.Spec],
        keep: Callable[[Work, _Expected], _Part],
    ) -> None:
        self._task, self._begin, self._expected, self._keep = task, begin, expected, keep
        self._work: CohortWork | None = None
        self._owed = _Expected({}, None)

    def do(self, members: Sequence[int]) -> list[_Part]:
        """Have participants work together; if that fails, each alone, so that it costs only who failed."""
        try:
            if self._work is None:
                self._owed = _Expected.of(self._task, self._expected(self._task))
                self._work = self._begin(self._task)
            return [self._keep(work, self._owed) for work in self._work(members)]
        except (Exception, SystemExit) as error:  # whatever a foreign model raises
            if ends_program(error):
                raise
            reason = reason_of(error)
        if len(members) == 1:
            return [_Part({}, {members[0]: reason})]
        # After the exception is gone: with what it held, and as nobody's cause.
        log.warning("a cohort of %d failed together (%s): one by one", len(members), one_line(reason, 100))
        return [part for member in members for part in self.do([member])]


def _problems(work: Work, expected: _Expected) -> dict[int, str]:
    """Say what is wrong with participants' work."""
    problems = _problems_with_metrics(work, expected)
    finite = _finite(work.arrays)  # if not, a sum may only have overflowed: look again
    # All have the shapes of the first; where everything is finite there is nothing more to look for.
    first = wire.problem_with(work.of(0), expected.spec)
    for row, member in enumerate(work.members):
        problem = first if finite or row == 0 else wire.problem_with(work.of(row), expected.spec)
        if problem is not None:
            problems.setdefault(member, problem)
    if len(problems) < len(work.members):
        for member, problem in _far(work, expected).items():
            problems.setdefault(member, problem)
    return problems


def _far(work: Work, expected: _Expected) -> dict[int, str]:
    """Say whose arrays lie too far from those that were sent; of the shapes that were expected."""
    reach = expected.reach
    if reach is None:
        return {}
    near = torch.ones(len(work.members), dtype=torch.bool)
    for keys, size in reach.quick():
        squares = torch.zeros(len(work.members))
        for key in keys:
            squares += torch.linalg.vector_norm(_rows(work.arrays[key]), dim=1).square().float()
        near &= squares.sqrt() <= size
    told = {
        work.members[row]: reach.problem_with(numpy_of(work.of(row)))
        for row in (~near).nonzero().flatten().tolist()
    }
    return {member: problem for member, problem in told.items() if problem is not None}


def _finite(arrays: Stack) -> bool:
    """Tell whether the sums of arrays are finite, and so every number in them."""
    return all(bool(values.sum().isfinite()) for values in arrays.values())


def _problems_with_metrics(work: Work, expected: _Expected) -> dict[int, str]:
    told = (
        (m, wire.problem_with_metrics(own, expected.examples))
        for m, own in zip(work.members, work.metrics, strict=True)
    )
    return {member: problem for member, problem in told if problem is not None}


def _weighted_sums(work: Work, rows: Sequence[int]) -> State:
    """Sum the arrays of some rows, each times its ``num-examples``, in float64."""
    if not rows:
        return {}
    weights = [_number(work.metrics[row], wire.NUM_EXAMPLES) for row in rows]
    weighting = torch.tensor(weights, dtype=torch.float64)
    every = len(rows) == len(work.members)
    return {
        key: _dot(weighting, values if every else values[list(rows)]) for key, values in work.arrays.items()
    }


def _dot(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum a stack [R, *shape], each times its weight; float64 [*shape]."""
    flat = _rows(values)
    if flat.shape[1] <= _CHUNK:
        return (weights @ flat.double()).view(values.shape[1:])
    parts = [weights @ chunk.double() for chunk in torch.split(flat, _CHUNK, dim=1)]
    return torch.cat(parts).view(values.shape[1:])


def _rows(values: torch.Tensor) -> torch.Tensor:
    """Return a stack [R, *shape] as [R, N]."""
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)


_CHUNK = 8192  # numbers of each participant that are summed at a time: in float64 they stay in the cache


def _mean(parts: Sequence[_Part]) -> tuple[State, Metrics]:
    """Return a cohort's mean, weighted by ``num-examples``, which add up like the steps."""
    sums: State = {}
    dtypes: dict[str, torch.dtype] = {}
    total, loss, steps = 0.0, 0.0, 0
    for part in parts:
        dtypes |= part.dtypes
        for key, values in part.sums.items():
            sums[key] = sums[key].add_(values) if key in sums else values
        for metrics in part.metrics.values():
            weight = _number(metrics, wire.NUM_EXAMPLES)
            total += weight
            loss += weight * _number(metrics, wire.TRAIN_LOSS)
            steps += _steps(metrics)
    mean = {
        key: (value / total if dtypes[key].is_floating_point else (value / total).round()).to(dtypes[key])
        for key, value in sums.items()
    }
    return mean, {
        wire.NUM_EXAMPLES: int(total),
        wire.TRAIN_LOSS: loss / total,
        wire.LOCAL_STEPS: steps,
    }


def _steps(metrics: Metrics) -> int:
    return int(_number(metrics, wire.LOCAL_STEPS)) if wire.LOCAL_STEPS in metrics else 0


def _number(metrics: Metrics, key: str) -> float:
    value = metrics[key]
    if not isinstance(value, int | float):
        raise ParticipantError(f"expected a number as {key}, got {value!r}")
    return float(value)


# ----------------------------------------------------------------------------- records


def _unpack(content: RecordDict) -> tuple[wire.Plan | None, list[Task]]:
    if wire.COHORTS not in content.config_records:
        return None, [_task(content, 0, 1, sums=False)]
    plan = wire.Plan.from_lists(content.config_records[wire.COHORTS])
    count = max(plan.variants) + 1
    sums = plan.reply == "mean"
    return plan, [_task(content, index, count, sums=sums, limits=plan.limits) for index in range(count)]


def _task(content: RecordDict, index: int, count: int, *, sums: bool, limits: Limits | None = None) -> Task:
    def state(key: str) -> State:
        record = content.array_records.get(wire.numbered(key, index, count))
        return dict(record.to_torch_state_dict()) if record is not None else {}

    config = content.config_records.get(wire.numbered(wire.CONFIG, index, count), ConfigRecord())
    return Task(state(wire.ARRAYS), config, state(wire.TRANSFER), sums, limits)


def _records(results: Sequence[tuple[State, Metrics]]) -> RecordDict:
    content = RecordDict()
    for index, (arrays, metrics) in enumerate(results):
        if arrays:
            content[wire.numbered(wire.ARRAYS, index, len(results))] = ArrayRecord(dict(arrays))
        content[wire.numbered(wire.METRICS, index, len(results))] = MetricRecord(dict(metrics))
    return content
