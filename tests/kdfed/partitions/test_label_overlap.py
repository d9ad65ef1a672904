from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdfed.partition import Partition
from kdfed.partitions import LabelOverlapPartition

Deal, Counts = Callable[..., Partition], Callable[[Partition], np.ndarray]


def test_without_overlap_groups_of_classes_are_disjoint(deal: Deal, counts: Counts) -> None:
    held = counts(deal(LabelOverlapPartition(participants=10, classes=2, overlap=0))) > 0
    assert (held.sum(axis=1) == 2).all()
    for one in held:
        for other in held:
            assert (one == other).all() or not (one & other).any()


def test_full_overlap_is_uniform(deal: Deal, counts: Counts) -> None:
    partition = deal(LabelOverlapPartition(participants=7, overlap=1, classes=2))
    assert np.ptp(partition.sizes) <= 1
    assert counts(partition).min() > 15


def test_the_overlap_is_the_share_that_comes_from_everybodys_classes(deal: Deal, counts: Counts) -> None:
    """Of an overlap of 0.5, 8 in 10 classes are not one's own: 0.5 x 0.8 = 0.4 are foreign."""
    table = counts(deal(LabelOverlapPartition(participants=10, classes=2, overlap=0.5)))
    own = np.sort(table, axis=1)[:, -2:].sum()
    assert abs(1 - own / table.sum() - 0.4) < 0.03


def test_a_group_without_a_participant_leaves_its_own_examples_unused(deal: Deal, pool: np.ndarray) -> None:
    """3 participants own 3 of 5 groups; 0.8 of the examples of the other 2 groups are left, 0.32 of all."""
    partition = deal(LabelOverlapPartition(participants=3, classes=2, overlap=0.2))
    assert abs(partition.unused / len(pool) - 0.32) < 0.02
