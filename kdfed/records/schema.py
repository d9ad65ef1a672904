"""``summary.json`` as a class tree: the contract by which it is written and read.

A field is a key, its docstring what the key means; ``docs/records.md`` says the same. Keys that this version
does not know are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdfed.convergence import CONVERGENCE
from kdfed.records.parsing import listed, short
from kdfed.records.rounds import Count, Score, Seconds, Stopped
from kdfed.savings import Verdict

Cost = Literal["rounds", "exchanges", "participant_uploads", "bytes", "local_steps", "rounds_to_convergence"]
COSTS: tuple[Cost, ...] = get_args(Cost)[:-1]
"""What arms are compared by at every target."""

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
_Word = Annotated[str, Field(max_length=200)]
_Target = Annotated[
    str,
    Field(
        pattern=r"^([0-9]{1,20}(\.[0-9]{1,20})?(e-[0-9]{1,3})?|[0-9]{1,3}(\.[0-9]{1,20})?%-of-(converged|gain))$"
    ),
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
    accuracy: Score
    """On the evaluation split at that evaluation."""
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
    simulated_seconds: Seconds | None = None
    """Null: no engine simulates the time of devices and links yet."""
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
    """The accuracy that this target means for this seed; null where it is a share of what a baseline
    converges to that did not finish."""
    rounds_to_target: Count | None
    """Of the hit; null for a miss."""
    exchanges_to_target: Count | None
    """Of the hit; null for a miss."""
    hit: CumulativeCosts | None
    """All costs at the first round whose own evaluation reached it and whose mean with the next two did; null
    for a miss."""
    first_hit: CumulativeCosts | None
    """All costs at the first evaluation that reached it, lasting or not; null where none did."""
    rounds_to_convergence: Count | None
    """The round of the hit at 99% of what the baseline converges to; null for a miss."""
    plateau: Count | None
    """The first round at which the curve is known to be flat; null when it never was."""
    plateau_half: Count | None
    """The same, with half the tolerance."""
    plateau_double: Count | None
    """The same, with twice the tolerance."""
    totals: CumulativeCosts
    """All costs of the whole run."""
    stopped: Stopped
    """Why the run ended."""
    final_accuracy: Score
    """The last of the curve."""
    converged_accuracy: Score | None
    """The mean of its last ten evaluations, that of the start left out; null for a run that did not
    get to the horizon."""
    best_accuracy: Score
    """The best of the curve."""
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
    """Fingerprint of the final weights: keys, types, shapes and bytes; empty when the run did not finish."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        recorded = (self.rounds_to_target, self.exchanges_to_target)
        if recorded != ((None, None) if self.hit is None else (self.hit.round, self.hit.exchanges)):
            raise ValueError(
                f"expected rounds_to_target and exchanges_to_target to be those of hit, got {recorded}"
            )
        if self.hit is not None and (self.first_hit is None or self.first_hit.round > self.hit.round):
            raise ValueError("expected a first_hit no later than the hit, got another")
        return self


class Saved(StrictModel):
    """Percent of the baseline's cost: a median over pairs, and its order-statistic interval."""

    median: Annotated[_Percent, Field(le=100)] | None
    """Median of 100 * (1 - arm / baseline); null where the arm never got there in most pairs."""
    low: _Percent | None
    """Lower end; null with fewer than six pairs, and where it is unbounded."""
    high: Annotated[_Percent, Field(le=100)] | None
    """Upper end, 100 where the baseline never got there; null with fewer than six pairs, and where the arm
    never did."""

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        known = [value for value in (self.low, self.median, self.high) if value is not None]
        if known != sorted(known):
            raise ValueError(f"expected low <= median <= high, got {self.low}, {self.median}, {self.high}")
        return self


class Ratio(StrictModel):
    """Cost of the arm over that of the baseline, where nobody missed."""

    geometric_mean: Annotated[float, Field(gt=0)]
    """Over pairs."""
    low: float | None
    """Lower end of the t interval on the logarithms; null with fewer than six pairs."""
    high: float | None
    """Upper end."""


class Censored(StrictModel):
    """How many pairs missed the target."""

    baseline: Count
    """The baseline alone."""
    arm: Count
    """The arm alone."""
    both: Count
    """Both."""


class ComparisonEntry(StrictModel):
    """What one arm saved of one cost on its way to one target."""

    baseline: _Name
    """The arm that it is compared with."""
    arm: _Name
    """Which arm."""
    target: _Target
    """As written in the experiment."""
    cost: Cost
    """What is compared."""
    saved_percent: Saved | None
    """Null where nobody reached the target, and where the baseline's cost is 0."""
    ratio: Ratio | None
    """Null where somebody missed, and where a cost is 0."""
    verdict: Verdict | None
    """Null with fewer than six pairs, and for controls."""
    p_value: Annotated[float, Field(ge=0, le=1)] | None
    """Of the two-sided sign test; null with fewer than six pairs."""
    ceiling_percent: Annotated[float, Field(ge=0, le=100)] | None
    """What an arm that needs one exchange would save of rounds or exchanges, counted like a saving; null for
    other costs, and where the baseline never got there."""
    pairs: Count
    """Seeds that are compared, misses among them."""
    censored: Censored
    """How many of them missed."""
    without_federation: Count
    """Seeds left out because the arm was there before its first exchange."""
    failed: Count
    """Seeds left out because a run failed, or ended before the horizon without a hit."""


ControlName = Literal["server_alone", "server_start", "averaged", "longer"]


class ControlEntry(StrictModel):
    """What became of one control."""

    arm: _Name | None
    """Which arm it is; null where it was not run."""
    why: str
    """Why it was not run; empty where it was."""
    labels: Count | None
    """Labels of the server's that its first model was fitted on; null for one that is fitted on none."""
    start_accuracy: Score | None
    """At round 0, the mean over seeds."""
    converged_accuracy: Score | None
    """The mean over seeds; null for the server alone, which has no rounds."""
    test_accuracy: Score | None
    """At the end, the mean over seeds; of the server alone, at the start."""


class HorizonEntry(StrictModel):
    """How long every arm runs."""

    rounds: Count
    """Federated rounds."""
    why: str
    """Where that number comes from."""


class PartitionEntry(StrictModel):
    """Who holds which classes in one seed."""

    seed: Count
    """Which seed."""
    participants: Annotated[Count, Field(ge=1)]
    """How many there are."""
    moved: Count
    """Examples that were moved to meet ``min-examples``."""
    unused: Count
    """Examples that are not used because nobody holds their class, or their value of a column is rare."""
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
    phase: Literal["start", "hello", "teachers", "consolidate", "statistics", "rounds"]
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


class RefitEntry(StrictModel):
    """One exchange for a head in closed form."""

    arm: _Name
    """Which arm."""
    seed: Count
    """Which seed."""
    at: Count | Literal["before-teachers", "with-teachers"]
    """After which federated round, 0 is the start; ``before-teachers`` and ``with-teachers``: of the common
    initial weights."""
    head: _Word
    """Which head."""
    participants: Count
    """Whose statistics it was solved from; 0 where the model kept its head."""
    examples: Count
    """Of how many examples."""
    chosen: float | None
    """The penalty or the shrinkage; null where the head has neither."""
    chosen_by: str
    """The setting that gave it, and its value, such as ``penalty: gcv``; empty where nothing did."""
    scale: float | None
    """By what the logits were multiplied; null where they were not."""
    scale_by: str
    """The setting that gave it, such as ``calibrate: sums``; empty where they were not."""
    features: Count = 0
    """That the head reads; 0 where the model kept its head, and in records of earlier versions."""
    pretrained: bool = False
    """Whether a backbone makes them that was trained before."""
    explained: float | None = None
    """Which share of the labels' variance the head explains, estimated from the sums for examples left
    out; null where the head cannot tell, and in records of earlier versions."""
    distillation_steps: Count = 0
    """Optimiser steps by which the model with the head was distilled into the one before it; 0 where it was
    not."""
    why: str
    """Why the model kept the head that it had; empty where it was replaced."""


class SunkEntry(StrictModel):
    """Teachers of an arm that existed already: what they cost stands in no figure."""

    arm: _Name
    """Which arm."""
    from_: Annotated[list[str], Field(alias="from", min_length=1)]
    """The folder, or the files."""


class Summary(StrictModel):
    """All of ``summary.json``."""

    schema_: Annotated[Literal[2], Field(alias="schema")] = 2
    """2."""
    note: str = ""
    """What a reader must know about these records; empty unless there is something."""
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    """Its name."""
    engine: _Word
    """What ran it."""
    seeds: Annotated[list[Count], Field(min_length=1)]
    """Those of the experiment."""
    targets: Annotated[list[_Target], Field(min_length=1)]
    """As written in the experiment, and ``99%-of-converged``."""
    metric: Literal["accuracy", "r2"] = "accuracy"
    """What every accuracy is; ``r2`` in a regression."""
    horizon: HorizonEntry
    """How long every arm runs."""
    evaluation_examples: Count | None
    """Examples of the split on which curves are read; null where the data are not at hand."""
    majority: Annotated[float, Field(ge=0, le=1)] | None
    """Share of its largest class, 0 in a regression; null where the data are not at hand."""
    server_labels: Count | None
    """Labels of the server's that the arms, controls left out, fit or choose with; null where the data are
    not at hand."""
    versions: dict[_Word, _Word]
    """Of Python and of the packages that computed it, by name."""
    failures: list[FailureEntry] = []
    """One entry a run that could not go on."""
    runs: list[RunEntry]
    """One entry an arm, seed and target."""
    comparisons: list[ComparisonEntry]
    """One entry an arm, target and cost."""
    controls: dict[ControlName, ControlEntry]
    """Whoever doubts the other arms looks here."""
    partitions: list[PartitionEntry]
    """One entry a seed."""
    consolidations: list[ConsolidationEntry] = []
    """One entry an arm and seed that consolidated."""
    refits: list[RefitEntry] = []
    """One entry an exchange for a head in closed form."""
    recipes: dict[_Word, _Word] = {}
    """What ``start: recipe`` was for which arm, and why."""
    sunk: list[SunkEntry] = []
    """One entry an arm whose teachers existed already (``teachers.from``)."""

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
        for number, entry in enumerate(self.comparisons):
            if entry.cost == "rounds_to_convergence" and entry.target != CONVERGENCE:
                raise ValueError(
                    f"comparisons.{number}.target: expected {CONVERGENCE} of this cost, got {entry.target}"
                )
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
            for name in ("final_accuracy", "converged_accuracy", "best_accuracy"):
                if (getattr(run, name) or 0) < 0:
                    raise ValueError(f"runs.{number}.{name}: expected at least 0, got {getattr(run, name):g}")

    def _check_pairs(self) -> None:
        """Every pair is a seed of both, and its hits are hits in runs."""
        ran: dict[tuple[str, str], set[int]] = {}
        hits: dict[tuple[str, str], set[int]] = {}
        for run in self.runs:
            ran.setdefault((run.arm, run.target), set()).add(run.seed)
            if run.hit is not None:
                hits.setdefault((run.arm, run.target), set()).add(run.seed)
        for number, entry in enumerate(self.comparisons):
            keys = (entry.baseline, entry.target), (entry.arm, entry.target)
            both_ran = ran.get(keys[0], set()) & ran.get(keys[1], set())
            theirs, ours = (hits.get(key, set()) & both_ran for key in keys)
            missed = entry.censored
            both_hit = entry.pairs - missed.baseline - missed.arm - missed.both
            if (
                not 0 <= both_hit <= len(theirs & ours)
                or entry.pairs > len(both_ran)
                or missed.arm > len(theirs - ours)
                or missed.baseline > len(ours - theirs)
                or missed.both > len(both_ran - ours - theirs)
                or (entry.saved_percent is not None and entry.pairs == missed.both)
            ):
                raise ValueError(
                    f"comparisons.{number}: expected pairs and censored that the hits in runs allow, got "
                    f"{entry.pairs} pairs and {short(missed.model_dump())} with {len(theirs)} hits of "
                    f"{entry.baseline} and {len(ours)} of {entry.arm} in {len(both_ran)} seeds"
                )


class FirstSummary(StrictModel):
    """What is kept of a ``summary.json`` of the first version, whose figures are counted anew."""

    engine: _Word
    """What ran it."""
    failures: list[FailureEntry] = []
    """One entry a run that could not go on."""
    partitions: list[PartitionEntry]
    """One entry a seed."""


def _check_distinct(section: str, keys: Sequence[tuple[Any, ...]]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for number, key in enumerate(keys):
        if key in seen:
            words = ", ".join(map(str, key))
            raise ValueError(f"{section}.{number}: expected one entry of {words}, got a second one")
        seen.add(key)
