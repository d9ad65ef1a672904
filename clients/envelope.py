"""One message, many participants: unpack a message into tasks, and cohorts' results into one reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from kdfed import wire
from kdfed.cohort.folded import Stack
from kdfed.errors import ParticipantError
from kdfed.models import State

log = logging.getLogger("flwr")

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
    """

    arrays: State
    config: Mapping[str, Any]
    transfer: State


@dataclass(frozen=True)
class Work:
    """What B participants did together.

    Parameters
    ----------
    arrays
        Weights or logits to send, each [B, *shape]; empty for none.
    metrics
        One a participant; ``num-examples`` at least.
    rows
        Where each participant's arrays are in the stack. Default: in the order of ``metrics``.
    """

    arrays: Stack
    metrics: list[Metrics]
    rows: list[int] | None = None

    def of(self, place: int) -> State:
        """Return one participant's arrays."""
        row = place if self.rows is None else self.rows[place]
        return {key: values[row] for key, values in self.arrays.items()}


CohortWork: TypeAlias = Callable[[Sequence[int]], Work]
"""Does the work of participants of one cohort, given their numbers."""


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
        alone = begin(task)([int(task.config.get("participant", 0))])
        return Message(_records([_result(alone, 0)]), reply_to=message)

    kinds = [_Kind(task, begin, expected) for task in tasks]
    results: list[tuple[State, Metrics]] = []
    rows: dict[int, tuple[int, int, str]] = {}  # participant: result, steps, reason
    variant = iter(plan.variants)
    for cohort in plan.cohorts:
        members: dict[int, list[int]] = {}
        for participant in cohort:
            members.setdefault(next(variant), []).append(participant)
        groups = [group for key, own in members.items() for group in kinds[key].do(own)]
        for group in groups:
            rows |= {participant: (-1, 0, reason) for participant, reason in group.problems.items()}
        if plan.reply == "each":
            for participant, (group, place) in sorted(_finished(groups)):
                rows[participant] = (len(results), _steps(group.work.metrics[place]), "")
                results.append(_result(group.work, place))
        elif any(group.places for group in groups):
            for participant, (group, place) in _finished(groups):
                rows[participant] = (len(results), _steps(group.work.metrics[place]), "")
            results.append(_weighted_mean(groups))
    answers = [(participant, *rows[participant]) for participant in plan.participants]
    content = _records(results)
    content[wire.COHORTS] = ConfigRecord(wire.Answers(*zip(*answers, strict=True)).to_lists())
    return Message(content, reply_to=message)


# ----------------------------------------------------------------------------- a cohort's work


@dataclass(frozen=True, eq=False)
class _Group:
    """Participants that worked together: where each one's work is, or why it is left out."""

    work: Work
    places: dict[int, int]
    problems: dict[int, str]


class _Kind:
    """One of a message's distinct contents."""

    def __init__(
        self, task: Task, begin: Callable[[Task], CohortWork], expected: Callable[[Task], wire.Spec]
    ) -> None:
        self._task, self._begin, self._expected = task, begin, expected
        self._work: CohortWork | None = None
        self._spec: wire.Spec = {}

    def do(self, members: Sequence[int]) -> Iterator[_Group]:
        """Have participants work together; if that fails, each alone, so that it costs only who failed."""
        try:
            if self._work is None:
                self._spec, self._work = self._expected(self._task), self._begin(self._task)
            work = self._work(members)
        except Exception as error:
            if len(members) > 1:
                log.warning("a cohort of %d failed together (%s): one by one", len(members), error)
                for member in members:
                    yield from self.do([member])
                return
            log.exception("participant %d failed", members[0])
            yield _Group(Work({}, []), {}, {members[0]: f"{type(error).__name__}: {error}"})
            return
        problems = {
            member: problem
            for member, problem in zip(members, _problems(work, self._spec), strict=True)
            if problem is not None
        }
        yield _Group(work, {m: i for i, m in enumerate(members) if m not in problems}, problems)


def _finished(groups: Sequence[_Group]) -> Iterator[tuple[int, tuple[_Group, int]]]:
    for group in groups:
        for participant, place in group.places.items():
            yield participant, (group, place)


def _problems(work: Work, spec: wire.Spec) -> list[str | None]:
    """Say what is wrong with each participant's work."""
    # A sum is finite only if every number is; if it is not, it may only have overflowed: look again.
    finite = all(bool(values.sum().isfinite()) for values in work.arrays.values())
    problems: list[str | None] = []
    for place, metrics in enumerate(work.metrics):
        # All have the shapes of the first; where everything is finite there is nothing more to look for.
        problem = wire.problem_with(work.of(place), spec) if place == 0 or not finite else problems[0]
        problems.append(problem or wire.problem_with_metrics(metrics))
    return problems


def _result(work: Work, place: int) -> tuple[State, Metrics]:
    return work.of(place), work.metrics[place]


def _weighted_mean(groups: Sequence[_Group]) -> tuple[State, Metrics]:
    """Return a cohort's mean, weighted by ``num-examples``, which add up like the steps.

    Sums run in float64, like those of :func:`kdfed.consolidate.average_states`.
    """
    sums: State = {}
    dtypes: dict[str, torch.dtype] = {}
    total, loss, steps = 0.0, 0.0, 0
    for group in groups:
        places = list(group.places.values())
        if not places:
            continue
        weights = [_number(group.work.metrics[place], wire.NUM_EXAMPLES) for place in places]
        for weight, place in zip(weights, places, strict=True):
            metrics = group.work.metrics[place]
            loss += weight * _number(metrics, wire.TRAIN_LOSS)
            steps += _steps(metrics)
        total += sum(weights)
        rows = places if group.work.rows is None else [group.work.rows[place] for place in places]
        by_row = dict(zip(rows, weights, strict=True))
        for key, values in group.work.arrays.items():
            part = _weighted_sum(values, by_row)
            dtypes[key] = values.dtype
            sums[key] = sums[key] + part if key in sums else part
    mean = {
        key: (value / total if dtypes[key].is_floating_point else (value / total).round()).to(dtypes[key])
        for key, value in sums.items()
    }
    return mean, {
        wire.NUM_EXAMPLES: int(total),
        wire.TRAIN_LOSS: loss / total,
        wire.LOCAL_STEPS: steps,
    }


_CHUNK = 4096  # numbers of each participant that are summed at a time: in float64 they stay in the cache


def _weighted_sum(values: torch.Tensor, weights: Mapping[int, float]) -> torch.Tensor:
    """Sum some rows of a stack [B, *shape], each times its weight; float64 [*shape]."""
    flat = values.reshape(len(values), -1)
    rows = sorted(weights)
    if len(rows) < len(values):
        flat = flat[rows]
    weighting = torch.tensor([weights[row] for row in rows], dtype=torch.float64)
    parts = [weighting @ chunk.double() for chunk in torch.split(flat, _CHUNK, dim=1)]
    return torch.cat(parts).view(values.shape[1:])


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
        return None, [_task(content, 0, 1)]
    plan = wire.Plan.from_lists(content.config_records[wire.COHORTS])
    count = max(plan.variants) + 1
    return plan, [_task(content, index, count) for index in range(count)]


def _task(content: RecordDict, index: int, count: int) -> Task:
    def state(key: str) -> State:
        record = content.array_records.get(wire.numbered(key, index, count))
        return dict(record.to_torch_state_dict()) if record is not None else {}

    config = content.config_records.get(wire.numbered(wire.CONFIG, index, count), ConfigRecord())
    return Task(state(wire.ARRAYS), config, state(wire.TRANSFER))


def _records(results: Sequence[tuple[State, Metrics]]) -> RecordDict:
    content = RecordDict()
    for index, (arrays, metrics) in enumerate(results):
        if arrays:
            content[wire.numbered(wire.ARRAYS, index, len(results))] = ArrayRecord(dict(arrays))
        content[wire.numbered(wire.METRICS, index, len(results))] = MetricRecord(dict(metrics))
    return content
