from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdfed.partition import Partition
from kdfed.partitions import QuantitySkewPartition

Deal, Counts = Callable[..., Partition], Callable[[Partition], np.ndarray]


def test_quantity_skew_has_unequal_sizes_of_equal_labels(deal: Deal, counts: Counts) -> None:
    partition = deal(QuantitySkewPartition(participants=10, alpha=0.5))
    assert partition.sizes.max() > 2 * np.median(partition.sizes)
    largest = counts(partition)[partition.sizes.argmax()]
    assert abs(largest / largest.sum() - 0.1).max() < 0.05


def test_a_large_alpha_makes_quantity_skew_uniform(deal: Deal) -> None:
    assert np.ptp(deal(QuantitySkewPartition(participants=10, alpha=1e6)).sizes) <= 6
