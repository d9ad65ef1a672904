"""One message, many participants: unpack a message into tasks, and tasks' results into one reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
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
    rows: list[tuple[int, int, int, int, str]] = []
    variant = iter(plan.variants)
    for cohort in plan.cohorts:
        finished: list[tuple[int, Work]] = []
        for participant in cohort:
            task = variants[next(variant)]
            task = Task(participant, task.arrays, task.config, task.transfer)
            try:
                done = work(task)
                problem = wire.problem_with(done.arrays, expected(task)) or wire.missing_metric(done.metrics)
            except Exception as error:
                log.exception("participant %d failed", participant)
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                finished.append((participant, done))
            else:
                rows.append((participant, -1, 0, 0, problem))
        if plan.reply == "each":
            for participant, done in finished:
                rows.append((participant, len(results), *_counts(done), ""))
                results.append(done)
        elif finished:
            rows += [(participant, len(results), *_counts(done), "") for participant, done in finished]
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


def _counts(done: Work) -> tuple[int, int]:
    steps = done.metrics.get(wire.LOCAL_STEPS, 0)
    count = done.metrics[wire.NUM_EXAMPLES]
    if not isinstance(steps, int | float) or not isinstance(count, int | float):
        raise ParticipantError(f"expected numbers of steps and examples, got {steps!r} and {count!r}")
    return int(count), int(steps)


def _weighted_mean(done: list[Work]) -> Work:
    """Return a cohort's mean, weighted by ``num-examples``, which add up like the steps."""
    counts = [_counts(one) for one in done]
    weights = [float(examples) for examples, _ in counts]
    losses = torch.tensor([float(one.metrics[wire.TRAIN_LOSS]) for one in done], dtype=torch.float64)  # type: ignore[arg-type]
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    metrics: dict[str, int | float | list[float]] = {
        wire.NUM_EXAMPLES: sum(examples for examples, _ in counts),
        wire.TRAIN_LOSS: float((losses * share).sum()),
        wire.LOCAL_STEPS: sum(steps for _, steps in counts),
    }
    return Work(average_states([one.arrays for one in done], weights), metrics)
