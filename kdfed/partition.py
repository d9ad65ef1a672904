"""Who holds what: a data set dealt to participants by a scheme of :mod:`kdfed.partitions`.

Every draw comes from (seed, "partition").

Legend: N examples, P participants, K classes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, overload

import numpy as np

from kdfed.data import PreparedData
from kdfed.errors import DataError
from kdfed.named import NamedError, blamed
from kdfed.partitions.scheme import PartitionBase
from kdfed.seeding import numpy_generator
from kdfed.thing import origin_of

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Partition:
    """One participant's examples each, in two flat arrays: a million participants are no million arrays.

    Parameters
    ----------
    examples
        int64, indices into the data set: participant 0's, sorted, then participant 1's, and so on; disjoint.
    bounds
        int64 [P + 1]; participant p holds ``examples[bounds[p] : bounds[p + 1]]``.
    moved
        How many examples were moved to give every participant ``min-examples``.
    unused
        How many examples of the pool nobody holds: 0, except where a kind gives some class no owner
        (k-classes with fewer than K / k participants, label-overlap with fewer participants than groups),
        or leaves out rare values of a column.
    """

    examples: np.ndarray
    bounds: np.ndarray
    moved: int
    unused: int = 0

    @property
    def indices(self) -> Sequence[np.ndarray]:
        """One sorted int64 array per participant; a view, cut when it is asked for."""
        return _Parts(self.examples, self.bounds)

    @property
    def sizes(self) -> np.ndarray:
        """Number of examples per participant, int64 [P]."""
        return np.diff(self.bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1


class _Parts(Sequence[np.ndarray]):
    """Consecutive slices of an array."""

    def __init__(self, flat: np.ndarray, bounds: np.ndarray) -> None:
        self._flat, self._bounds = flat, bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self._flat[self._bounds[number] : self._bounds[number + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


def make_partition(
    settings: PartitionBase, labels: np.ndarray, pool: np.ndarray, classes: int, seed: int
) -> Partition:
    """Deal the examples of a pool to participants.

    Parameters
    ----------
    settings
        Kind, its numbers, participants, ``min-examples``.
    labels
        int64 [N], of the whole data set.
    pool
        int64 indices of the examples to deal: the train split.
    classes
        Number of classes K.
    seed
        The run's seed; partitions of other seeds are independent draws.

    Raises
    ------
    DataError
        If the pool has too few examples, or classes, for what is asked; its ``key`` says what has to change.
    """
    generator = numpy_generator(seed, "partition")
    order = generator.permutation(np.sort(pool))

    def deal() -> tuple[np.ndarray, np.ndarray]:
        _check(settings, labels[pool], classes)
        return settings.deal_flat(labels[order], classes, generator)

    dealt, sizes = _of_users(settings, deal)
    _check_dealt(settings, dealt, sizes, len(order))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    moved = 0
    if sizes.min() < settings.min_examples:
        moved = _meet_minimum(
            owner, sizes, labels[order[dealt]], classes, settings.min_examples, settings.keeps_classes
        )
    # One sort by (owner, example) instead of one a participant.
    examples = owner
    examples *= len(labels)
    examples += order[dealt]
    examples.sort()
    examples %= len(labels)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return Partition(examples, bounds, moved, len(pool) - len(dealt))


@lru_cache(maxsize=4)
def partition_of(data: PreparedData, settings: PartitionBase, seed: int) -> Partition:
    """Deal a data set's train split to participants; once per process for the same arguments.

    A regression has no classes: it is dealt by ten equally filled bins of its label.

    Raises
    ------
    DataError
        As :func:`make_partition`.
    """
    settings = in_data(settings, data)
    labels, classes = _of_users(settings, lambda: settings.dealt_by(data))
    return make_partition(settings, labels, data.splits.train, classes, seed)


def in_data(settings: PartitionBase, data: PreparedData) -> PartitionBase:
    """Return the settings of a partition with what only the data tell: how many participants there are.

    Raises
    ------
    DataError
        If the data do not have what is dealt by.
    """
    return _of_users(settings, lambda: settings.in_data(data))


def _of_users(settings: PartitionBase, ask: Callable[[], T]) -> T:
    """Ask a partition, whose code may be a user's."""
    try:
        with blamed(origin_of(settings), f"partition {settings.kind!r}: expected a deal"):
            return ask()
    except NamedError as error:
        raise DataError(str(error), "partition.kind") from error


def class_counts(
    partition: Partition, labels: np.ndarray, classes: int, participants: int | None = None
) -> np.ndarray:
    """Count participants' examples of each class.

    Parameters
    ----------
    partition
        Who holds what.
    labels
        int64 [N], of the whole data set.
    classes
        Number of classes K.
    participants
        Count only the first so many, where there are more. Default: everyone.

    Returns
    -------
    numpy.ndarray
        int64 [participants, K].
    """
    sizes = partition.sizes[:participants]
    held = partition.examples[: partition.bounds[len(sizes)]]
    return _counts(np.repeat(np.arange(len(sizes)), sizes), labels[held], len(sizes), classes)


def _counts(owner: np.ndarray, labels: np.ndarray, participants: int, classes: int) -> np.ndarray:
    counts = np.bincount(owner * classes + labels, minlength=participants * classes)
    return counts.reshape(participants, classes).astype(np.int64, copy=False)


def _check(settings: PartitionBase, labels: np.ndarray, classes: int) -> None:
    participants, minimum = settings.participants, settings.min_examples
    if participants > len(labels):
        raise DataError(
            f"expected at most as many participants as examples for them ({len(labels)} after the held-out "
            f"splits), got {participants}",
            "partition.participants",
        )
    if participants * minimum > len(labels):
        raise DataError(
            f"{participants} participants x min-examples {minimum} need {participants * minimum} examples, "
            f"there are {len(labels)} after the held-out splits: lower one of the two",
            "partition.min-examples",
        )
    problem = settings.problem_with(labels, classes)
    if problem is not None:
        key, message = problem
        raise DataError(message, key)


def _check_dealt(settings: PartitionBase, dealt: np.ndarray, sizes: np.ndarray, count: int) -> None:
    """Check what a partition dealt: one of a user's may be wrong."""
    expected = (
        f"partition {settings.kind!r}: expected indices from 0 to {count - 1}, each dealt once at most, to "
        f"{settings.participants} participants"
    )
    if len(sizes) != settings.participants or dealt.dtype.kind not in "iu":
        raise DataError(f"{expected}, got {dealt.dtype} for {len(sizes)} participants", "partition.kind")
    if len(dealt) and (dealt.min() < 0 or dealt.max() >= count):
        raise DataError(f"{expected}, got {dealt.min()} to {dealt.max()}", "partition.kind")
    if len(dealt) and np.bincount(dealt).max() > 1:
        raise DataError(f"{expected}, got {np.bincount(dealt).argmax()} twice", "partition.kind")


def _meet_minimum(
    owner: np.ndarray, sizes: np.ndarray, labels: np.ndarray, classes: int, minimum: int, keep_classes: bool
) -> int:
    """Move single examples from the largest participants until everyone has the minimum.

    The giver is whoever holds most, the first among equals; it gives the last of its examples that may go. A
    receiver may gain a class by this, unless ``keep_classes`` is set.

    Parameters
    ----------
    owner
        int64 [M], of each example; sorted, examples of one owner in random order. Changed in place.
    sizes
        int64 [P], examples of each participant. Changed in place.
    labels
        int64 [M], of each example.
    classes
        Number of classes K.
    minimum
        Examples that everyone must have.
    keep_classes
        Move only examples of a class that the receiver holds, and never the giver's last of a class, so that
        nobody gains or loses a class.

    Returns
    -------
    int
        How many examples were moved.

    Raises
    ------
    DataError
        If nobody can give.
    """
    ends = np.cumsum(sizes)
    counts = _counts(owner, labels, len(sizes), classes) if keep_classes else None
    held: dict[int, list[int]] = {}  # what is left of those that gave
    largest = [(-int(sizes[giver]), int(giver)) for giver in np.flatnonzero(sizes > minimum)]
    heapq.heapify(largest)
    moved = 0
    for receiver in np.flatnonzero(sizes < minimum):
        while sizes[receiver] < minimum:
            wanted = None if counts is None else counts[receiver] > 0
            giver = _giver(largest, sizes, minimum, counts, wanted)
            if giver is None:
                kept = " without changing its classes" if keep_classes else ""
                raise DataError(
                    f"cannot give every participant {minimum} examples{kept}: lower partition.min-examples "
                    "or partition.participants",
                    "partition.min-examples",
                )
            own = held.setdefault(giver, list(range(ends[giver] - sizes[giver], ends[giver])))
            position = len(own) - 1
            if counts is not None:
                free = wanted & (counts[giver] > 1)
                position = next(i for i in range(position, -1, -1) if free[labels[own[i]]])
            example = own.pop(position)
            owner[example] = receiver
            for participant, change in ((giver, -1), (int(receiver), 1)):
                sizes[participant] += change
                if counts is not None:
                    counts[participant, labels[example]] += change
            moved += 1
    return moved


def _giver(
    largest: list[tuple[int, int]],
    sizes: np.ndarray,
    minimum: int,
    counts: np.ndarray | None,
    wanted: np.ndarray | None,
) -> int | None:
    """Return who gives next, None where nobody can.

    ``largest`` is a heap of (minus size, participant) of everyone above the minimum: looking at everyone for
    each example would take minutes for 100,000 participants. Which classes may move depends on the receiver,
    so where they are kept everyone is looked at all the same.
    """
    if counts is not None:
        may_give = (sizes > minimum) & (counts[:, wanted] > 1).any(axis=1)
        return int(np.argmax(np.where(may_give, sizes, -1))) if may_give.any() else None
    if not largest:
        return None
    size, giver = heapq.heappop(largest)
    if -size - 1 > minimum:
        heapq.heappush(largest, (size + 1, giver))
    return giver
