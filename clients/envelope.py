"""One message, many participants: unpack a message into tasks, and tasks' results into one reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from kdfed import wire
from kdfed.consolidate import average_states
from kdfed.errors import ParticipantError
from kdfed.models import State

log = logging.getLogger("flwr")


@dataclass(frozen=True)
class Task:
    """What one participant is asked to do.

    Parameters
    ----------
    participant
        Its number.
    arrays
        The received weights; empty when none were sent.
    config
        The settings of its handler.
    transfer
        Transfer examples as stored (``inputs``); empty when none were sent.
    """

    participant: int
    arrays: State
    config: Mapping[str, Any]
    transfer: State


@dataclass(frozen=True)
class Work:
    """What one participant did.

    Parameters
    ----------
    arrays
        Weights or logits to send; empty for none.
    metrics
        ``num-examples`` at least.
    """

    arrays: State
    metrics: dict[str, int | float | list[float]]


def answer(message: Message, work: Callable[[Task], Work], expected: Callable[[Task], wire.Spec]) -> Message:
    """Do the work of every participant of a message; one participant's failure costs only that one.

    Parameters
    ----------
    message
        From the server.
    work
        Does one participant's task.
    expected
        Shapes and dtypes that a task's result must have to be summed.

    Returns
    -------
    Message
        For a device's message a plain reply. For a simulation's message one result per cohort or
        participant, and who was left out and why.
    """
    plan, variants = _unpack(message.content)
    if plan is None:
        (task,) = variants
        done = work(task)
        return Message(_records([done]), reply_to=message)

    results: list[Work] = []
    rows: list[tuple[int, int, int, str]] = []
    variant = iter(plan.variants)
    for cohort in plan.cohorts:
        finished: list[tuple[int, Work]] = []
        for participant in cohort:
            task = variants[next(variant)]
            task = Task(participant, task.arrays, task.config, task.transfer)
            try:
                done = work(task)
                problem = wire.problem_with(done.arrays, expected(task)) or wire.problem_with_metrics(
                    done.metrics
                )
            except Exception as error:
                log.exception("participant %d failed", participant)
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                finished.append((participant, done))
            else:
                rows.append((participant, -1, 0, problem))
        if plan.reply == "each":
            for participant, done in finished:
                rows.append((participant, len(results), _steps(done), ""))
                results.append(done)
        elif finished:
            rows += [(participant, len(results), _steps(done), "") for participant, done in finished]
            results.append(_weighted_mean([done for _, done in finished]))
    rows.sort(key=lambda row: plan.participants.index(row[0]))
    content = _records(results)
    content[wire.COHORTS] = ConfigRecord(wire.Answers(*zip(*rows, strict=True)).to_lists())
    return Message(content, reply_to=message)


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
    return Task(int(config.get("participant", 0)), state(wire.ARRAYS), config, state(wire.TRANSFER))  # type: ignore[arg-type]


def _records(results: list[Work]) -> RecordDict:
    content = RecordDict()
    for index, done in enumerate(results):
        if done.arrays:
            content[wire.numbered(wire.ARRAYS, index, len(results))] = ArrayRecord(dict(done.arrays))
        content[wire.numbered(wire.METRICS, index, len(results))] = MetricRecord(dict(done.metrics))
    return content


def _steps(done: Work) -> int:
    return int(_number(done, wire.LOCAL_STEPS)) if wire.LOCAL_STEPS in done.metrics else 0


def _number(done: Work, key: str) -> float:
    value = done.metrics[key]
    if not isinstance(value, int | float):
        raise ParticipantError(f"expected a number as {key}, got {value!r}")
    return float(value)


def _weighted_mean(done: list[Work]) -> Work:
    """Return a cohort's mean, weighted by ``num-examples``, which add up like the steps."""
    weights = [_number(one, wire.NUM_EXAMPLES) for one in done]
    losses = [weight * _number(one, wire.TRAIN_LOSS) for weight, one in zip(weights, done, strict=True)]
    metrics: dict[str, int | float | list[float]] = {
        wire.NUM_EXAMPLES: int(sum(weights)),
        wire.TRAIN_LOSS: sum(losses) / sum(weights),
        wire.LOCAL_STEPS: sum(_steps(one) for one in done),
    }
    return Work(average_states([one.arrays for one in done], weights), metrics)
