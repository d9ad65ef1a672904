"""Records as they are read back: whole, possible, and those of the experiment that they lie beside.

Whatever reads ``rounds.jsonl`` and ``summary.json`` may rely on what is checked here, and checks nothing
itself. Every function raises a ValueError that names the line or the entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from kdfed.config import Experiment
from kdfed.records.parsing import listed, parse_json, problems_of, short
from kdfed.records.rounds import RoundRecord
from kdfed.records.schema import FirstSummary, Summary
from kdfed.task import TASKS

CUMULATIVE = (
    "exchanges", "participant_uploads", "bytes_up", "bytes_down", "local_steps", "seconds",
)  # fmt: skip
"""Costs of a record, which never fall within an arm and seed."""


def parse_rounds(content: bytes) -> list[RoundRecord]:
    """Read the lines of ``rounds.jsonl``.

    A last line that a killed run left half written is dropped.

    Raises
    ------
    ValueError
        If another line is no record.
    """
    *whole, last = content.split(b"\n")
    lines = [*whole, last] if _is_json(last) else whole
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(RoundRecord.from_json(line.decode()))
        except ValueError as error:
            raise ValueError(f"line {number}: expected a record: {error}") from error
    return records


def _is_json(line: bytes) -> bool:
    """Whether a line without its newline is whole: what a kill cut off ends before its last brace."""
    try:
        parse_json(line.decode())
    except ValueError:
        return False
    return True


def check_rounds(records: Sequence[RoundRecord], experiment: Experiment) -> None:
    """Check that records, one a line, can be those of an experiment.

    Raises
    ------
    ValueError
        If a line names an arm or a seed that the experiment does not have, or an accuracy that its task
        cannot have; if the rounds of an arm and seed do not rise from 0 one by one; or if a cost falls.
    """
    last: dict[tuple[str, int], RoundRecord] = {}
    least = None if experiment.data.task == "regression" else 0.0
    for number, record in enumerate(records, start=1):
        key = (record.arm, record.seed)
        problem = _wrong_in_record(record, last.get(key), experiment, least)
        if problem:
            raise ValueError(f"line {number}: {problem}")
        last[key] = record


def _wrong_in_record(
    record: RoundRecord, before: RoundRecord | None, experiment: Experiment, least: float | None
) -> str:
    if record.arm not in experiment.arms:
        return f"arm: expected one of {listed(experiment.arms)}, got {short(record.arm)}"
    if record.seed not in experiment.seeds:
        return f"seed: expected one of {listed(experiment.seeds)}, got {record.seed}"
    wanted = 0 if before is None else before.round + 1
    whose = f"of arm {record.arm}, seed {record.seed}"
    if record.round != wanted:
        return f"round: expected round {wanted} {whose}, got {record.round}"
    if wanted > experiment.horizon:
        return f"round: expected at most rounds.horizon, {experiment.horizon}, got {record.round}"
    phase = "rounds" if record.round else "start"
    if record.phase != phase:
        return f"phase: expected {phase!r} in round {record.round}, got {record.phase!r}"
    for name in ("accuracy", "test_accuracy", "validation_accuracy"):
        value = getattr(record, name)
        if least is not None and value is not None and value < least:
            return f"{name}: expected at least {least:g}, got {value:g}"
    for name in CUMULATIVE if before is not None else ():
        now, then = getattr(record, name), getattr(before, name)
        if now < then:
            return f"{name}: expected at least the {then:g} of the round before {whose}, got {now:g}"
    return ""


def parse_summary(content: bytes) -> dict[str, Any]:
    """Read ``summary.json``; keys that this version does not know are kept, and not looked at.

    Raises
    ------
    ValueError
        If it is no JSON, or not what :func:`kdfed.records.summarise` returns; or if the first version
        of kdfed wrote it (see :func:`is_of_schema_1`), whose figures are counted anew.
    """
    try:
        summary = parse_json(content.decode())
    except ValueError as error:
        raise ValueError(f"expected JSON: {error}") from error
    if not isinstance(summary, dict):
        raise ValueError(f"expected an object, got {short(summary)}")
    try:
        Summary.model_validate(summary)
    except ValidationError as error:
        raise ValueError(problems_of(error)) from error
    return summary


def is_of_schema_1(content: bytes) -> bool:
    """Whether this is a summary of the first version, which counted otherwise."""
    try:
        summary = parse_json(content.decode())
    except ValueError:
        return False
    return isinstance(summary, dict) and "runs" in summary and not {"schema", "horizon"} & set(summary)


def parse_schema_1(content: bytes) -> FirstSummary:
    """Read what is kept of a summary of the first version.

    Raises
    ------
    ValueError
        If the first version did not write it.
    """
    try:
        return FirstSummary.model_validate(parse_json(content.decode()))
    except ValidationError as error:
        raise ValueError(problems_of(error)) from error


def check_summary(summary: Mapping[str, Any], experiment: Experiment, records: Sequence[RoundRecord]) -> None:
    """Check that a summary can be that of an experiment and its records.

    Parameters
    ----------
    summary
        Of :func:`parse_summary`.
    experiment, records
        What lies beside it.

    Raises
    ------
    ValueError
        If it names another experiment, other seeds, targets or arms, or rounds that are not in the records.
    """
    wanted = {
        "experiment": experiment.name,
        "seeds": list(experiment.seeds),
        "targets": [str(target) for target in experiment.counted_targets],
        "metric": TASKS[experiment.data.task].metric,
    }
    for key, value in wanted.items():
        if summary.get(key, value) != value:
            raise ValueError(
                f"{key}: expected {short(value)}, as in the experiment beside it, got {short(summary[key])}"
            )
    curves: dict[tuple[str, int], int] = {}
    for record in records:
        curves[record.arm, record.seed] = record.round
    for number, run in enumerate(summary["runs"]):
        rounds = curves.get((run["arm"], run["seed"]))
        if rounds is None:
            whose = f"arm {short(run['arm'])}, seed {run['seed']}"
            raise ValueError(f"runs.{number}: expected evaluations of {whose} in rounds.jsonl, got none")
        entries = {name: run[name] for name in ("totals", "hit", "first_hit")}
        for name, costs in entries.items():
            if costs is not None and costs["round"] > rounds:
                raise ValueError(
                    f"runs.{number}.{name}.round: expected at most {rounds}, the last round in rounds.jsonl, "
                    f"got {costs['round']}"
                )
    for number, failure in enumerate(summary.get("failures", ())):
        if failure["arm"] not in experiment.arms:
            known = listed(experiment.arms)
            raise ValueError(f"failures.{number}.arm: expected one of {known}, got {short(failure['arm'])}")
    compared = {(entry["arm"], entry["target"]) for entry in summary["comparisons"]}
    pairs = {(arm, target) for arm in experiment.arm_order[1:] for target in wanted["targets"]}
    if compared != pairs or any(e["baseline"] != experiment.baseline_arm for e in summary["comparisons"]):
        raise ValueError(
            f"comparisons: expected {listed(experiment.arm_order[1:]) or 'no arm'} against "
            f"{experiment.baseline_arm} at every target, got others"
        )
