"""Records as they are read back: whole, possible, and those of the experiment that they lie beside.

Whatever reads ``rounds.jsonl`` and ``summary.json`` may rely on what is checked here, and checks nothing
itself. Every function raises a ValueError that names the line or the entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdfed.config import Experiment
from kdfed.records.parsing import parse_json, problems_of, short
from kdfed.records.rounds import Count, RoundRecord, Score, Seconds, Stopped
from kdfed.records.summary import COSTS
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
        return f"arm: expected one of {_listed(experiment.arms)}, got {short(record.arm)}"
    if record.seed not in experiment.seeds:
        return f"seed: expected one of {_listed(experiment.seeds)}, got {record.seed}"
    wanted = 0 if before is None else before.round + 1
    whose = f"of arm {record.arm}, seed {record.seed}"
    if record.round != wanted:
        return f"round: expected round {wanted} {whose}, got {record.round}"
    if wanted > experiment.rounds.max:
        return f"round: expected at most rounds.max, {experiment.rounds.max}, got {record.round}"
    phase = "rounds" if record.round else "start"
    if record.phase != phase:
        return f"phase: expected {phase!r} in round {record.round}, got {record.phase!r}"
    for name in ("accuracy", "test_accuracy"):
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
        If it is no JSON, or not what :func:`kdfed.records.summarise` returns.
    """
    try:
        summary = parse_json(content.decode())
    except ValueError as error:
        raise ValueError(f"expected JSON: {error}") from error
    if not isinstance(summary, dict):
        raise ValueError(f"expected an object, got {short(summary)}")
    try:
        _Summary.model_validate(summary)
    except ValidationError as error:
        raise ValueError(problems_of(error)) from error
    return summary


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
        "targets": [str(target) for target in experiment.targets],
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
        places = {
            "totals": run["totals"],
            "first_hit": run["first_hit"],
            "sustained_hit": run["sustained_hit"],
        }
        for name, costs in places.items():
            if costs is not None and costs["round"] > rounds:
                raise ValueError(
                    f"runs.{number}.{name}.round: expected at most {rounds}, the last round in rounds.jsonl, "
                    f"got {costs['round']}"
                )
    for number, failure in enumerate(summary.get("failures", ())):
        if failure["arm"] not in experiment.arms:
            known = _listed(experiment.arms)
            raise ValueError(f"failures.{number}.arm: expected one of {known}, got {short(failure['arm'])}")
    compared = {(entry["arm"], entry["target"]) for entry in summary["comparisons"]}
    pairs = {(arm, target) for arm in experiment.arm_order[1:] for target in wanted["targets"]}
    if compared != pairs or any(e["baseline"] != experiment.baseline_arm for e in summary["comparisons"]):
        raise ValueError(
            f"comparisons: expected {_listed(experiment.arm_order[1:]) or 'no arm'} against "
            f"{experiment.baseline_arm} at every target, got others"
        )


def _listed(names: Any) -> str:
    """Return names as an error lists them, the first ten."""
    words = [short(name).strip("'") for name in names]
    return ", ".join(words[:10] + (["…"] if len(words) > 10 else []))


# ----------------------------------------------------------------------------- summary.json


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
_Word = Annotated[str, Field(max_length=200)]
_Target = Annotated[
    str, Field(pattern=r"^([0-9]{1,20}(\.[0-9]{1,20})?(e-[0-9]{1,3})?|[0-9]{1,3}(\.[0-9]{1,20})?%-of-best)$")
]
_Percent = Annotated[float, Field(ge=-1e30, le=1e30)]


class _Costs(_Part):
    round: Count
    exchanges: Count
    participant_uploads: Count
    bytes_up: Count
    bytes_down: Count
    local_steps: Count
    seconds: Seconds
    test_accuracy: Score | None


class _Run(_Part):
    arm: _Name
    seed: Count
    target: _Target
    target_accuracy: Annotated[float, Field(gt=0, le=2)] | None
    rule: Literal["sustained", "first"]
    rounds_to_target: Count | None
    exchanges_to_target: Count | None
    first_hit: _Costs | None
    sustained_hit: _Costs | None
    rounds_to_plateau: Count | None
    totals: _Costs
    stopped: Stopped
    final_accuracy: Score
    best_accuracy: Score
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        hit = self.first_hit if self.rule == "first" else self.sustained_hit
        told = (self.rounds_to_target, self.exchanges_to_target)
        if told != ((None, None) if hit is None else (hit.round, hit.exchanges)):
            raise ValueError(
                f"expected rounds_to_target and exchanges_to_target to be those of {self.rule}_hit, got "
                f"{told}"
            )
        return self


class _Saved(_Part):
    mean: Annotated[_Percent, Field(le=100)]
    low: _Percent
    high: _Percent

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if not self.low <= self.mean <= self.high:
            raise ValueError(f"expected low <= mean <= high, got {self.low}, {self.mean}, {self.high}")
        return self


class _Ratio(_Part):
    geometric_mean: Annotated[float, Field(gt=0)]
    low: float
    high: float


class _Censored(_Part):
    baseline: Count
    arm: Count
    both: Count


class _Comparison(_Part):
    baseline: _Name
    arm: _Name
    target: _Target
    rule: Literal["sustained", "first"]
    cost: Literal["rounds", "exchanges", "participant_uploads", "bytes", "local_steps"]
    saved_percent: _Saved | None
    ratio: _Ratio | None
    pairs: Count
    censored: _Censored
    failed: Count


class _Partition(_Part):
    seed: Count
    participants: Annotated[Count, Field(ge=1)]
    moved: Count
    unused: Count
    class_names: Annotated[list[str], Field(min_length=1)]
    counts: Annotated[list[list[Count]], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        if len(self.counts) > self.participants:
            raise ValueError(
                f"counts: expected at most {self.participants} rows, one a participant, got "
                f"{len(self.counts)}"
            )
        for participant, row in enumerate(self.counts):
            if len(row) != len(self.class_names):
                raise ValueError(
                    f"counts.{participant}: expected {len(self.class_names)} numbers, one a name in "
                    f"class_names, got {len(row)}"
                )
        return self


class _Failure(_Part):
    arm: _Name
    seed: Count
    phase: Literal["start", "hello", "teachers", "consolidate", "rounds"]
    reason: str


class _Summary(_Part):
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    engine: _Word
    seeds: Annotated[list[Count], Field(min_length=1)]
    targets: Annotated[list[_Target], Field(min_length=1)]
    metric: Literal["accuracy", "r2"] = "accuracy"
    versions: dict[_Word, _Word]
    runs: list[_Run]
    comparisons: list[_Comparison]
    partitions: list[_Partition]
    consolidations: list[dict[str, Any]] = []
    failures: list[_Failure] = []

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for section in ("runs", "comparisons", "partitions", "failures"):
            for number, entry in enumerate(getattr(self, section)):
                for key, known in (("seed", self.seeds), ("target", self.targets)):
                    value = getattr(entry, key, known[0])
                    if value not in known:
                        raise ValueError(
                            f"{section}.{number}.{key}: expected one of {_listed(known)}, got {short(value)}"
                        )
        self._check_scores()
        _check_distinct("runs", [(run.arm, run.seed, run.target) for run in self.runs])
        _check_distinct("partitions", [(entry.seed,) for entry in self.partitions])
        _check_distinct("comparisons", [(c.arm, c.target, c.cost) for c in self.comparisons])
        for arm, target in {(entry.arm, entry.target) for entry in self.comparisons}:
            costs = {entry.cost for entry in self.comparisons if (entry.arm, entry.target) == (arm, target)}
            missing = [cost for cost in COSTS if cost not in costs]
            if missing:
                raise ValueError(
                    f"comparisons: expected all of {', '.join(COSTS)} of arm {short(arm)} at {target}, "
                    f"got no {', '.join(missing)}"
                )
        self._check_pairs()
        return self

    def _check_scores(self) -> None:
        if self.metric == "r2":
            return
        for number, run in enumerate(self.runs):
            for name in ("final_accuracy", "best_accuracy"):
                if getattr(run, name) < 0:
                    raise ValueError(f"runs.{number}.{name}: expected at least 0, got {getattr(run, name):g}")

    def _check_pairs(self) -> None:
        """Every pair is a hit of the baseline, and of the arm unless that missed."""
        hits: dict[tuple[str, str], set[int]] = {}
        for run in self.runs:
            if run.rounds_to_target is not None:
                hits.setdefault((run.arm, run.target), set()).add(run.seed)
        for number, entry in enumerate(self.comparisons):
            theirs = hits.get((entry.baseline, entry.target), set())
            ours = hits.get((entry.arm, entry.target), set())
            missed = entry.censored
            if (
                entry.pairs > len(theirs)
                or entry.pairs - missed.arm > len(ours & theirs)
                or missed.baseline > len(ours)
                or (entry.saved_percent is not None and entry.pairs == 0)
            ):
                raise ValueError(
                    f"comparisons.{number}: expected pairs and censored that the hits in runs allow, got "
                    f"{entry.pairs} pairs and {short(missed.model_dump())} with {len(theirs)} hits of "
                    f"{entry.baseline} and {len(ours)} of {entry.arm}"
                )


def _check_distinct(section: str, keys: Sequence[tuple[Any, ...]]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for number, key in enumerate(keys):
        if key in seen:
            words = ", ".join(map(str, key))
            raise ValueError(f"{section}.{number}: expected one entry of {words}, got a second one")
        seen.add(key)
