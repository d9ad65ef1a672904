from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kdfed.errors import DataError
from kdfed.partition import Partition, class_counts, make_partition
from kdfed.partitions import KClassesPartition

Deal, Counts = Callable[..., Partition], Callable[[Partition], np.ndarray]


@pytest.mark.parametrize("participants", [4, 5, 20, 33, 100])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 10])
def test_k_classes_gives_everyone_exactly_k(deal: Deal, counts: Counts, participants: int, k: int) -> None:
    held = counts(deal(KClassesPartition(participants=participants, classes=k))) > 0
    assert (held.sum(axis=1) == k).all()
    assert np.ptp(held.sum(axis=0)) <= 1  # and every class has as many owners, up to one


def test_k_classes_is_disjoint_at_the_extreme_and_leaves_no_class_over(deal: Deal, counts: Counts) -> None:
    held = counts(deal(KClassesPartition(participants=5, classes=2))) > 0
    assert (held.sum(axis=0) == 1).all()


def test_k_classes_with_few_participants_leaves_the_other_classes_unused(
    deal: Deal, counts: Counts, pool: np.ndarray
) -> None:
    """2 participants x 2 classes hold 4 of 10 classes; the examples of the other 6 are counted."""
    partition = deal(KClassesPartition(participants=2, classes=2))
    held = counts(partition) > 0
    assert held.sum() == 4
    assert held.sum(axis=0).max() == 1
    assert partition.unused == len(pool) - partition.sizes.sum() > 0


def test_k_classes_makes_many_pairs_of_classes(deal: Deal, counts: Counts) -> None:
    held = counts(deal(KClassesPartition(participants=100, classes=2))) > 0
    assert len(np.unique(held, axis=0)) > 20


def test_more_shards_of_a_class_than_examples_are_refused() -> None:
    labels = np.repeat([0, 1], [3, 97])
    with pytest.raises(DataError, match="cannot deal 100 examples") as caught:
        make_partition(KClassesPartition(participants=20, classes=2), labels, np.arange(100), 2, 0)
    assert caught.value.key == "partition.participants"


def test_moves_keep_the_k_classes_of_everyone() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(5, size=2000, p=[0.05, 0.1, 0.2, 0.25, 0.4])
    partition = make_partition(
        KClassesPartition(participants=20, min_examples=45, classes=2), labels, np.arange(2000), 5, 0
    )
    held = class_counts(partition, labels, 5) > 0
    assert partition.moved > 0
    assert (held.sum(axis=1) == 2).all()


def test_a_minimum_that_would_change_classes_is_refused() -> None:
    labels = np.repeat([0, 1], [10, 90])
    with pytest.raises(DataError, match="without changing its classes") as caught:
        make_partition(
            KClassesPartition(participants=2, min_examples=20, classes=1), labels, np.arange(100), 2, 0
        )
    assert caught.value.key == "partition.min-examples"
