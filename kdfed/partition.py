"""Who holds what: the data distributions of federated learning.

Dirichlet and quantity skew draw through flwr-datasets' ``DirichletPartitioner``, k-classes cuts its shards
with its ``PathologicalPartitioner``. The rest is ours, because flwr-datasets has no such distribution
(overlap), or deals classes so that participants overlap where they need not (k-classes). Its
``IidPartitioner`` cuts an already shuffled set into equal slices, as it is done here.

Every draw comes from (seed, "partition").

Legend: N examples, P participants, K classes.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np

from kdfed.config import (
    DirichletPartition,
    KClassesPartition,
    LabelOverlapPartition,
    PartitionBase,
    PartitionSettings,
    QuantitySkewPartition,
    UniformPartition,
)
from kdfed.data import PreparedData
from kdfed.errors import DataError, unknown
from kdfed.seeding import numpy_generator

PARTITIONS: dict[str, str] = {
    "uniform": "IID: shuffled, equal sizes",
    "quantity-skew": "IID labels, sizes drawn from Dirichlet(alpha)",
    "label-overlap": "own group of classes, plus a share of everybody's",
    "k-classes": "pathological: exactly k classes each, disjoint at the extreme",
    "dirichlet": "label skew: each class is dealt by a draw from Dirichlet(alpha)",
}
"""Data distributions by kind, one line each."""


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
        (k-classes with fewer than K / k participants, label-overlap with fewer participants than groups).
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
        place = range(len(self))[index]
        return self._flat[self._bounds[place] : self._bounds[place + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


def make_partition(
    settings: PartitionSettings, labels: np.ndarray, pool: np.ndarray, classes: int, seed: int
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
    _check(settings, labels[pool], classes)
    generator = numpy_generator(seed, "partition")
    order = generator.permutation(np.sort(pool))
    dealt, sizes = _deal(settings, labels[order], classes, generator)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    moved = 0
    if sizes.min() < settings.min_examples:
        kept = isinstance(settings, KClassesPartition)
        moved = _meet_minimum(owner, sizes, labels[order[dealt]], classes, settings.min_examples, kept)
    # One sort by (owner, example) instead of one a participant.
    examples = owner
    examples *= len(labels)
    examples += order[dealt]
    examples.sort()
    examples %= len(labels)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return Partition(examples, bounds, moved, len(pool) - len(dealt))


@lru_cache(maxsize=4)
def partition_of(data: PreparedData, settings: PartitionSettings, seed: int) -> Partition:
    """Deal a data set's train split to participants; once per process for the same arguments.

    A regression has no classes: it is dealt by ten equally filled bins of its label.

    Raises
    ------
    DataError
        As :func:`make_partition`.
    """
    return make_partition(settings, data.strata, data.splits.train, len(data.strata_names), seed)


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


def _check(settings: PartitionSettings, labels: np.ndarray, classes: int) -> None:
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
    if isinstance(settings, KClassesPartition | LabelOverlapPartition):
        present = classes if isinstance(settings, LabelOverlapPartition) else len(np.unique(labels))
        if settings.classes > present:
            raise DataError(
                f"expected at most the {present} classes of the data, got {settings.classes}",
                "partition.classes",
            )


def _deal(
    settings: PartitionSettings, labels: np.ndarray, classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return places in the shuffled pool, participant after participant in random order, and sizes."""
    if type(settings) is UniformPartition:
        each, larger = divmod(len(labels), settings.participants)
        sizes = each + (np.arange(settings.participants) < larger)
        return np.arange(len(labels)), sizes
    deal = DEALERS.get(type(settings))
    if deal is None:
        raise DataError(
            str(unknown("partition.kind", settings.kind, PARTITIONS, "kdfed.partition.DEALERS")),
            "partition.kind",
        )
    parts = deal(settings, labels, classes, generator)
    return np.concatenate(parts), np.array([len(part) for part in parts])


def _dirichlet(
    labels: np.ndarray, participants: int, alpha: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Deal each class by proportions from Dirichlet(alpha) (Hsu et al. 2019, arXiv 1909.06335)."""
    return _flower(
        lambda partitioners: partitioners.DirichletPartitioner(
            num_partitions=participants,
            partition_by="label",
            alpha=alpha,
            min_partition_size=0,
            self_balancing=False,
            seed=int(generator.integers(2**32)),
        ),
        labels,
    )


def _k_classes(
    labels: np.ndarray, participants: int, k: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Cut P x k shards of one class each, and deal k of different classes to everyone.

    Shards are spread evenly over the classes. A participant takes the k classes with the most shards
    left, ties at random: so the shards always suffice, and nobody shares a class while P x k is at
    most K.
    """
    present, places = np.unique(labels, return_inverse=True)
    rank = generator.permutation(len(present))  # which classes get one shard more, or any, is random
    shards = _flower(
        lambda partitioners: partitioners.PathologicalPartitioner(
            num_partitions=participants * k,
            partition_by="label",
            num_classes_per_partition=1,
            class_assignment_mode="deterministic",
            seed=int(generator.integers(2**32)),
        ),
        rank[places],
    )
    stacks = [shards[first :: len(present)] for first in range(len(present))]
    left = np.array([len(stack) for stack in stacks])
    parts = []
    for _ in range(participants):
        chosen = np.lexsort((generator.random(len(left)), -left))[:k]
        left[chosen] -= 1
        parts.append(generator.permutation(np.concatenate([stacks[c][left[c]] for c in chosen])))
    return parts


def _label_overlap(
    labels: np.ndarray,
    participants: int,
    classes: int,
    settings: LabelOverlapPartition,
    generator: np.random.Generator,
) -> list[np.ndarray]:
    """Deal a share of every class to everybody alike, the rest to the participants of the class's own group.

    Classes are shuffled and cut into groups of ``settings.classes`` (the last may be smaller); participant p
    belongs to group p modulo the number of groups. The own examples of a group
    without a participant are unused.
    """
    size = settings.classes
    group_of = np.empty(classes, dtype=np.int64)
    group_of[generator.permutation(classes)] = np.arange(classes) // size
    common: list[np.ndarray] = []
    own: list[list[np.ndarray]] = [[] for _ in range(-(-classes // size))]
    for label in range(classes):
        places = np.flatnonzero(labels == label)
        cut = round(settings.overlap * len(places))
        common.append(places[:cut])
        own[group_of[label]].append(places[cut:])
    parts = [[part] for part in _cut(common, participants, generator)]
    for group, places_of_group in enumerate(own):
        members = range(group, participants, len(own))
        if members:
            for member, part in zip(members, _cut(places_of_group, len(members), generator), strict=True):
                parts[member].append(part)
    return [generator.permutation(np.concatenate(part)) for part in parts]


DEALERS: dict[type[PartitionBase], Callable[..., list[np.ndarray]]] = {
    DirichletPartition: lambda settings, labels, classes, generator: _dirichlet(
        labels, settings.participants, settings.alpha, generator
    ),
    # With one class for all, the draw over participants is a draw of their sizes.
    QuantitySkewPartition: lambda settings, labels, classes, generator: _dirichlet(
        np.zeros_like(labels), settings.participants, settings.alpha, generator
    ),
    KClassesPartition: lambda settings, labels, classes, generator: _k_classes(
        labels, settings.participants, settings.classes, generator
    ),
    LabelOverlapPartition: lambda settings, labels, classes, generator: _label_overlap(
        labels, settings.participants, classes, settings, generator
    ),
}
"""Settings -> (settings, labels [N], classes, generator) -> one array of places a participant.

By their very class: a derived one, which would have another meaning, is not taken for its base.
"""


def _cut(places: list[np.ndarray], parts: int, generator: np.random.Generator) -> list[np.ndarray]:
    return np.array_split(generator.permutation(np.concatenate(places)), parts)


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
            place = len(own) - 1
            if counts is not None:
                free = wanted & (counts[giver] > 1)
                place = next(i for i in range(place, -1, -1) if free[labels[own[i]]])
            example = own.pop(place)
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


def _flower(make: Callable[[Any], Any], labels: np.ndarray) -> list[np.ndarray]:
    """Run one of flwr-datasets' partitioners on labels; returns places in random order."""
    try:
        import datasets
        import flwr_datasets.partitioner as partitioners
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"this partition needs the package flwr-datasets: pip install 'kdfed[sim]' ({error})",
            "partition.kind",
        ) from error

    class Labels(datasets.Dataset):  # type: ignore[misc]
        """A table of labels that answers in arrays; Hugging Face's own takes seconds for the same."""

        def __getitem__(self, key: str) -> np.ndarray:
            return labels

        def select(self, indices: Any) -> np.ndarray:
            return np.asarray(indices, dtype=np.int64)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes that nobody holds
        partitioner = make(partitioners)
        partitioner.dataset = Labels(pyarrow.table({"label": labels}))
        try:
            return [partitioner.load_partition(part) for part in range(partitioner.num_partitions)]
        except ValueError as error:
            raise DataError(
                f"cannot deal {len(labels)} examples: {error}", "partition.participants"
            ) from error
