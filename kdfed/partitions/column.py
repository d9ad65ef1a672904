"""The partition ``column``: each value of a column is one participant, as the data came about.

Nothing is drawn: the split decides who holds what, and every seed deals the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field

from kdfed.errors import DataError, one_line
from kdfed.partitions.scheme import PartitionBase
from kdfed.settings import PositiveInt, Text

if TYPE_CHECKING:
    from kdfed.data import PreparedData


class ColumnPartition(PartitionBase):
    """Natural: each value of a column is one participant, in the order of the values."""

    kind: Literal["column"] = "column"
    """The data distribution."""
    column: Text
    """The column of a table that says whose an example is: texts, whole numbers or dates. It is no input,
    unless ``data.columns.inputs`` names it."""
    participants: Annotated[int, Field(ge=0, le=10**9)] = 0
    """0 for as many as there are values; any other number must be that."""
    min_examples: PositiveInt = 1
    """A value of which the train split holds fewer examples is rare; no example moves."""
    rare: Literal["refuse", "leave-out"] = "refuse"
    """What becomes of rare values. ``leave-out``: they are no participants, their examples of the train split
    are nobody's, and the record says how many these are."""

    def in_data(self, data: PreparedData) -> Self:
        """Return the settings with the number of participants.

        Raises
        ------
        DataError
            If there is no such column, a value is rare, or another number was given.
        """
        names, _, counts = _column(data, self.column)
        rare = np.flatnonzero(counts < self.min_examples)
        if len(rare) and self.rare == "refuse":
            some = ", ".join(f"{one_line(names[value], 50)} has {counts[value]}" for value in rare[:5])
            lower = "min-examples or data.splits" if self.min_examples > 1 else "data.splits"
            raise DataError(
                f"expected min-examples, {self.min_examples}, of each value of column {self.column!r} in "
                f"the train split, {len(rare)} of {len(names)} have fewer ({some}): lower {lower}, or set "
                "rare: leave-out",
                "partition.min-examples",
            )
        count = len(names) - len(rare)
        if count == 0:
            raise DataError(
                f"expected a value of column {self.column!r} with {self.min_examples} examples in the train "
                f"split, got {counts.max()} at most: lower it",
                "partition.min-examples",
            )
        if self.participants not in (0, count):
            raise DataError(
                f"expected {count}, one for each value of column {self.column!r}, got {self.participants}; "
                "remove it, or set it to 0",
                "partition.participants",
            )
        return self.model_copy(update={"participants": count})

    def dealt_by(self, data: PreparedData) -> tuple[np.ndarray, int]:
        """Return each example's participant, -1 for nobody, and how many participants there are."""
        _, owner, counts = _column(data, self.column)
        kept = counts >= self.min_examples
        participant = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last is nobody's
        return participant[owner], int(kept.sum())

    def deal_flat(
        self, labels: np.ndarray, classes: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give everybody its own: all indices, one participant's after the other's, and sizes [P]."""
        order = np.argsort(labels, kind="stable")
        return order[labels[order] >= 0], np.bincount(labels[labels >= 0], minlength=classes)

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Give everybody its own."""
        dealt, sizes = self.deal_flat(labels, classes, generator)
        return np.split(dealt, np.cumsum(sizes)[:-1])


class _Column(NamedTuple):
    """Who there is.

    Parameters
    ----------
    names
        The values, sorted.
    owner
        int64 [N], the place of each example's value among them; -1 of a value that occurs in the source's own
        test part alone: who is only tested is no participant.
    counts
        int64, how many examples of the train split have each value.
    """

    names: np.ndarray
    owner: np.ndarray
    counts: np.ndarray


@lru_cache(maxsize=4)
def _column(data: PreparedData, name: str) -> _Column:
    if data.dataset.values_of is None:
        raise DataError(
            "expected a source with columns (parquet:, hf:, or a function of yours that gives values_of), to "
            f"find {one_line(name, 50)!r} among them; use another kind",
            "partition.kind",
        )
    names, owner = np.unique(data.dataset.values_of(name), return_inverse=True)
    counts = np.bincount(owner[data.splits.train], minlength=len(names))
    if data.dataset.official_test is not None:
        others = np.delete(owner, data.dataset.official_test)
        here = (np.bincount(others, minlength=len(names)) > 0) | (counts > 0)
        names, owner, counts = names[here], np.where(here, np.cumsum(here) - 1, -1)[owner], counts[here]
    return _Column(names, owner, counts)
