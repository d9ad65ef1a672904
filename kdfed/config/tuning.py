"""The section ``tuning`` of an experiment: what is searched, how often, on which seeds and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from kdfed.config.merging import dotted, undotted
from kdfed.settings import Distinct, Fraction, Settings, Text

Trials = Annotated[int, Field(ge=1, le=10**4)]


def _rising(rungs: tuple[int, ...]) -> tuple[int, ...]:
    if list(rungs) != sorted(set(rungs)):
        raise ValueError("expected more rounds from rung to rung")
    return rungs


def _flat(values: object) -> object:
    """Return a mapping by dotted keys, however its keys were nested; what is none is refused later."""
    if not isinstance(values, Mapping):
        return values
    found = dotted(undotted(values))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found}


Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=1000)]

Space = Annotated[dict[Text, Values], Field(min_length=1, max_length=100), BeforeValidator(_flat)]
"""Dotted keys of an arm, and the values that each can have."""


class TuningSettings(Settings):
    """How `kdfed tune` searches, see [Tuning](tuning.md)."""

    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1, max_length=1000), Distinct
    ] = (100, 101)
    """Every candidate is run with each; none of them is among the experiment's `seeds`."""
    examples: Fraction = 0.15
    """Share of all examples, counted like `data.splits.validation`, on which candidates are compared. They
    are the participants' otherwise, and while candidates run nobody trains, fits or chooses with them. The
    evaluation and the test split are not looked at."""
    trials: Trials = 12
    """Candidates of each arm that is tuned, its settings as they stand among them; `by-hand` come on top."""
    keep: Fraction = 0.34
    """Share of the candidates that goes on to the next rung; at least one does."""
    rungs: Annotated[
        tuple[Annotated[int, Field(ge=2, le=10**6)], ...],
        Field(min_length=1, max_length=20),
        AfterValidator(_rising),
    ] = (15, 60)
    """Federated rounds of each rung; of those that reach the last, the best one wins."""
    target: Literal["95%-of-converged", "95%-of-gain"] = "95%-of-converged"
    """What candidates should reach in few exchanges: a share of the best converged accuracy among them, or,
    for tables with one large class, of its gain over always naming that class."""
    longest: Annotated[int, Field(ge=2, le=10**6)] = 1000
    """The tuned baseline is run until its curve is flat, for the horizon; so many rounds at most."""
    arms: dict[Text, Space] = Field(default_factory=dict, max_length=100)
    """The search space of each arm that is tuned: dotted keys, and the values of each. The baseline comes
    first; its local training and server become those of every arm. An arm with a warm start can search the
    local training anew."""
    by_hand: dict[Text, Trials] = Field(default_factory=dict, max_length=100)
    """Trials of an arm that were made by hand before. They count: every other arm gets as many more."""
