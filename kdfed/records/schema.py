"""``summary.json`` as a class tree: the contract by which it is written and read.

A field is a key, its docstring what the key means; ``docs/records.md`` says the same. Keys that this version
does not know are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdfed.records.parsing import listed, short
from kdfed.records.rounds import Count, Score, Seconds, Stopped

Cost = Literal["rounds", "exchanges", "participant_uploads", "bytes", "local_steps"]
COSTS: tuple[Cost, ...] = get_args(Cost)
"""What arms are compared by."""

Rule = Literal["sustained", "first"]

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
_Word = Annotated[str, Field(max_length=200)]
_Target = Annotated[
    str, Field(pattern=r"^([0-9]{1,20}(\.[0-9]{1,20})?(e-[0-9]{1,3})?|[0-9]{1,3}(\.[0-9]{1,20})?%-of-best)$")
]
_Percent = Annotated[float, Field(ge=-1e30, le=1e30)]


class StrictModel(BaseModel):
    """Base of every part of the summary: no value is converted, no number is infinite."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class CumulativeCosts(StrictModel):
    """What a run had cost by one of its evaluations; see :class:`kdfed.records.RoundRecord`."""

    round: Count
    """Federated rounds; 0 is the start."""
    exchanges: Count
    """Trips server → participants → server, the teacher exchange included."""
    participant_uploads: Count
    """Replies of participants."""
    bytes_up: Count
    """Logical bytes from participants."""
    bytes_down: Count
    """Logical bytes to participants."""
    local_steps: Count
    """Optimiser steps of all participants together."""
    seconds: Seconds
    """Since the arm began."""
    test_accuracy: Score | None
    """On the test split at that evaluation; null where it was not finite."""


class RunEntry(StrictModel):
    """How one arm and seed came to one target."""

    arm: _Name
    """Which arm."""
    seed: Count
    """Which seed."""
    target: _Target
    """As written in the experiment."""
    target_accuracy: Annotated[float, Field(gt=0, le=2)] | None
    """The accuracy that this target means for this seed; null where it is a share of the best of a baseline
    that did not finish."""
    rule: Rule
    """When a target counts as reached."""
    rounds_to_target: Count | None
    """By the rule; null for a miss."""
    exchanges_to_target: Count | None
    """By the rule; null for a miss."""
    first_hit: CumulativeCosts | None
    """All costs at the first evaluation that reached it; null for a miss."""
    sustained_hit: CumulativeCosts | None
    """All costs at the first round from which the mean of three evaluations reached it; null for a miss."""
    rounds_to_plateau: Count | None
    """Null when the curve never went flat."""
    totals: CumulativeCosts
    """All costs of the whole run."""
    stopped: Stopped
    """Why the run ended."""
    final_accuracy: Score
    """The last of the validation curve."""
    best_accuracy: Score
    """The best of the validation curve."""
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
    """Fingerprint of the final weights: keys, types, shapes and bytes; empty when the run did not finish."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        hit = self.first_hit if self.rule == "first" else self.sustained_hit
        recorded = (self.rounds_to_target, self.exchanges_to_target)
        if recorded != ((None, None) if hit is None else (hit.round, hit.exchanges)):
            raise ValueError(
                f"expected rounds_to_target and exchanges_to_target to be those of {self.rule}_hit, got "
                f"{recorded}"
            )
        return self


class Saved(StrictModel):
    """Percent of the baseline's cost: a mean over pairs, and its 95% interval."""

    mean: Annotated[_Percent, Field(le=100)]
    """Mean of 100 * (1 - arm / baseline)."""
    low: _Percent
    """Lower end; the mean itself for a single pair."""
    high: _Percent
    """Upper end; the mean itself for a single pair."""

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if not self.low <= self.mean <= self.high:
            raise ValueError(f"expected low <= mean <= high, got {self.low}, {self.mean}, {self.high}")
        return self


class Ratio(StrictModel):
    """Cost of the arm over that of the baseline, with the interval of the mean of its logarithm."""

    geometric_mean: Annotated[float, Field(gt=0)]
    """Over pairs."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class Censored(StrictModel):
    """How many seeds missed the target."""

    baseline: Count
    """The baseline alone; left out of the mean."""
    arm: Count
    """The arm alone; in the mean, at what a miss counts as."""
    both: Count
    """Both; left out of the mean."""


class ComparisonEntry(StrictModel):
    """What one arm saved of one cost on its way to one target."""

    baseline: _Name
    """The arm that it is compared with."""
    arm: _Name
    """Which arm."""
    target: _Target
    """As written in the experiment."""
    rule: Rule
    """When a target counts as reached."""
    cost: Cost
    """What is compared."""
    saved_percent: Saved | None
    """Null without a pair, or where the baseline's cost is 0."""
    ratio: Ratio | None
    """Null without a pair, or where a cost is 0."""
    pairs: Count
    """Seeds in the mean."""
    censored: Censored
    """How many seeds missed."""
    failed: Count
    """Seeds left out because a run failed."""


class PartitionEntry(StrictModel):
    """Who holds which classes in one seed."""

    seed: Count
    """Which seed."""
    participants: Annotated[Count, Field(ge=1)]
    """How many there are."""
    moved: Count
    """Examples that were moved to meet ``min-examples``."""
    unused: Count
    """Examples that are not used because nobody holds their class."""
    class_names: Annotated[list[str], Field(min_length=1)]
    """Classes, or bins of a regression's label."""
    counts: Annotated[list[list[Count]], Field(min_length=1)]
    """Examples, [participants, classes]; the first 100 participants."""

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


class FailureEntry(StrictModel):
    """A run that could not go on."""

    arm: _Name
    """Which arm."""
    seed: Count
    """Which seed."""
    phase: Literal["start", "hello", "teachers", "consolidate", "rounds"]
    """What it was at."""
    reason: str
    """What was expected, what arrived and what to change."""


class ConsolidationEntry(StrictModel):
    """What the consolidation of one arm and seed took: its method's name, and what that tells."""

    model_config = ConfigDict(extra="allow")

    arm: _Name
    """Which arm."""
    seed: Count
    """Which seed."""


class Summary(StrictModel):
    """All of ``summary.json``."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    """Its name."""
    engine: _Word
    """What ran it."""
    seeds: Annotated[list[Count], Field(min_length=1)]
    """Those of the experiment."""
    targets: Annotated[list[_Target], Field(min_length=1)]
    """As written in the experiment."""
    metric: Literal["accuracy", "r2"] = "accuracy"
    """What every accuracy is; ``r2`` in a regression."""
    versions: dict[_Word, _Word]
    """Of Python and of the packages that computed it, by name."""
    failures: list[FailureEntry] = []
    """One entry a run that could not go on."""
    runs: list[RunEntry]
    """One entry an arm, seed and target."""
    comparisons: list[ComparisonEntry]
    """One entry an arm, target and cost."""
    partitions: list[PartitionEntry]
    """One entry a seed."""
    consolidations: list[ConsolidationEntry] = []
    """One entry an arm and seed that consolidated."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for section in ("runs", "comparisons", "partitions", "failures"):
            for number, entry in enumerate(getattr(self, section)):
                for key, known in (("seed", self.seeds), ("target", self.targets)):
                    value = getattr(entry, key, known[0])
                    if value not in known:
                        raise ValueError(
                            f"{section}.{number}.{key}: expected one of {listed(known)}, got {short(value)}"
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
