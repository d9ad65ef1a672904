"""One line of ``rounds.jsonl``, and how a run ended."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from kdfed.closed_form.refit import Refit
from kdfed.records.parsing import parse_json, problems_of

Stopped = Literal["horizon", "target", "plateau", "listener", "failed", "interrupted"]

Count = Annotated[int, Field(ge=0, lt=2**63)]
Score = Annotated[float, Field(ge=-1e30, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
"""What a record holds; no run takes 30,000 years."""


@dataclass(frozen=True)
class Absent:
    """A participant that was left out of an exchange, and why."""

    participant: Count
    reason: str


@dataclass(frozen=True)
class RoundRecord:
    """One evaluation of one arm; costs are those of the arm so far.

    Parameters
    ----------
    arm, seed
        Which run.
    round
        The federated round; 0 is the start.
    exchanges
        Server -> participants -> server trips.
    phase
        ``start`` for round 0, else ``rounds``.
    accuracy
        On the evaluation split, in [0, 1]; of a regression R^2, at most 1. Hits and converged accuracies are
        read on it, and nothing is chosen by it.
    test_accuracy
        On the test split, only reported; None without one. NaN and infinity are kept as None.
    loss
        Mean cross entropy on the evaluation split, in nats (of a regression: mean squared error of the
        standardised label); None when it is not finite.
    participant_uploads
        Replies of participants.
    bytes_up, bytes_down
        Logical bytes from participants, and to them.
    local_steps
        Optimiser steps of all participants together.
    answered
        Participants whose answer was used in this round (at the start: whose teacher was).
    absent
        Participants that were left out of this round.
    seconds
        Since the arm began.
    validation_accuracy
        On the validation split, by which stops and searches decide. None where it was not finite, and in
        records of the first version, whose ``accuracy`` it was.
    """

    arm: str
    seed: Count
    round: Count
    exchanges: Count
    phase: Literal["start", "rounds"]
    accuracy: Score
    test_accuracy: Score | None
    loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    participant_uploads: Count
    bytes_up: Count
    bytes_down: Count
    local_steps: Count
    answered: Count
    absent: tuple[Absent, ...]
    seconds: Seconds
    validation_accuracy: Score | None = None

    def __post_init__(self) -> None:
        for name in ("test_accuracy", "loss", "validation_accuracy"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)

    def to_json(self) -> str:
        """Return the record as one line of JSON, without its newline."""
        return json.dumps(asdict(self), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> RoundRecord:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the line is not JSON, does not have exactly the keys of a record, or has a value of another
            type or out of its range.
        """
        values = parse_json(line)
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) not in (known, known - {"validation_accuracy"}):
            raise ValueError(f"expected an object with the keys {', '.join(sorted(known))}")
        try:
            return _RECORD.validate_json(line, strict=True)
        except ValidationError as error:
            raise ValueError(problems_of(error)) from error


_RECORD = TypeAdapter(RoundRecord)


@dataclass(frozen=True)
class Outcome:
    """How one run of one arm ended: one line of ``outcomes.jsonl``, where it finished.

    Parameters
    ----------
    arm, seed
        Which run.
    stopped
        Why it ended.
    weights_sha256
        Of its final model; empty when it did not finish.
    consolidation
        The method's name and :class:`kdfed.consolidate.ConsolidationResult`, where there was one.
    evaluations
        Lines of ``rounds.jsonl``.
    versions
        Packages that computed it, by name.
    refits
        What became of each refit of a head in closed form.
    """

    arm: str
    seed: int
    stopped: Stopped
    weights_sha256: str
    consolidation: dict[str, Any] | None = None
    evaluations: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    refits: list[Refit] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the outcome as one line of JSON, without its newline."""
        return json.dumps(asdict(self), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Outcome:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the line is not JSON, or lacks a key or has a value of another type.
        """
        return _OUTCOME.validate_json(
            line.replace('"stopped": "max-rounds"', '"stopped": "horizon"'), strict=True
        )


_OUTCOME = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Failure:
    """A run that could not go on.

    Parameters
    ----------
    arm, seed
        Which run.
    phase
        What it was at: ``start``, ``hello``, ``teachers``, ``consolidate``, ``statistics`` or ``rounds``.
    reason
        What was expected, what arrived and what to change.
    """

    arm: str
    seed: int
    phase: str
    reason: str

    def __str__(self) -> str:
        return f"arm {self.arm}, seed {self.seed}: {self.reason}"
