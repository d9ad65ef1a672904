"""Who holds what: the data distributions of federated learning.

Dirichlet and quantity skew draw through flwr-datasets' ``DirichletPartitioner``, k-classes cuts its shards
with its ``PathologicalPartitioner``. The rest is ours, because flwr-datasets has no such distribution
(overlap), or deals classes so that participants overlap where they need not (k-classes). Its
``IidPartitioner`` cuts an already shuffled set into equal slices, which is ``numpy.array_split``.

Every draw comes from (seed, "partition").

Legend: N examples, P participants, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdfed.config import (
    DirichletPartition,
    KClassesPartition,
    LabelOverlapPartition,
    PartitionSettings,
    QuantitySkewPartition,
)
from kdfed.errors import DataError
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
    """One participant's examples each.

    Parameters
    ----------
    indices
        One sorted int64 array per participant, indices into the data set; disjoint.
    moved
        How many examples were moved to give every participant ``min-examples``.
    unused
        How many examples of the pool nobody holds: 0, except where a kind gives some class no owner
        (k-classes with fewer than K / k participants, label-overlap with fewer participants than groups).
    """

    indices: tuple[np.ndarray, ...]
    moved: int
    unused: int = 0


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
    parts = _deal(settings, labels[order], classes, generator)
    kept = isinstance(settings, KClassesPartition)
    parts, moved = _meet_minimum(parts, labels[order], classes, settings.min_examples, kept)
    unused = len(pool) - sum(map(len, parts))
    return Partition(tuple(np.sort(order[part]) for part in parts), moved, unused)


def class_counts(partition: Partition, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count each participant's examples of each class; int64 [P, K]."""
    return _counts(partition.indices, labels, classes)


def _counts(parts: Any, labels: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts]).astype(np.int64)


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
) -> list[np.ndarray]:
    """Return each participant's places in the shuffled pool, in random order."""
    participants = settings.participants
    if isinstance(settings, DirichletPartition):
        return _dirichlet(labels, participants, settings.alpha, generator)
    if isinstance(settings, QuantitySkewPartition):
        # With one class for all, the draw over participants is a draw of their sizes.
        return _dirichlet(np.zeros_like(labels), participants, settings.alpha, generator)
    if isinstance(settings, KClassesPartition):
        return _k_classes(labels, participants, settings.classes, generator)
    if isinstance(settings, LabelOverlapPartition):
        return _label_overlap(labels, participants, classes, settings, generator)
    return np.array_split(np.arange(len(labels)), participants)


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


def _cut(places: list[np.ndarray], parts: int, generator: np.random.Generator) -> list[np.ndarray]:
    return np.array_split(generator.permutation(np.concatenate(places)), parts)


def _meet_minimum(
    parts: list[np.ndarray], labels: np.ndarray, classes: int, minimum: int, keep_classes: bool
) -> tuple[list[np.ndarray], int]:
    """Move single examples from the largest participants until everyone has the minimum.

    A receiver may gain a class by this, unless ``keep_classes`` is set.

    Parameters
    ----------
    parts
        Places in the pool, in random order.
    labels
        int64, of the pool.
    classes
        Number of classes K.
    minimum
        Examples that everyone must have.
    keep_classes
        Move only examples of a class that the receiver holds, and never the giver's last of a class, so that
        nobody gains or loses a class.

    Raises
    ------
    DataError
        If nobody can give.
    """
    counts = _counts(parts, labels, classes)
    sizes = counts.sum(axis=1)
    receivers = np.flatnonzero(sizes < minimum)
    held = [list(part) for part in parts] if len(receivers) else []
    moved = 0
    for receiver in receivers:
        while sizes[receiver] < minimum:
            may_give = sizes > minimum
            if keep_classes:
                wanted = counts[receiver] > 0
                may_give &= (counts[:, wanted] > 1).any(axis=1)
            if not may_give.any():
                kept = " without changing its classes" if keep_classes else ""
                raise DataError(
                    f"cannot give every participant {minimum} examples{kept}: lower partition.min-examples "
                    "or partition.participants",
                    "partition.min-examples",
                )
            giver = int(np.argmax(np.where(may_give, sizes, -1)))
            place = len(held[giver]) - 1
            if keep_classes:
                free = wanted & (counts[giver] > 1)
                place = next(i for i in range(place, -1, -1) if free[labels[held[giver][i]]])
            example = held[giver].pop(place)
            held[receiver].append(example)
            for participant, change in ((giver, -1), (int(receiver), 1)):
                counts[participant, labels[example]] += change
                sizes[participant] += change
            moved += 1
    return ([np.array(part, dtype=np.int64) for part in held] if moved else parts), moved


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
