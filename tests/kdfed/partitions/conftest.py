"""One pool of labels that tests of every partition deal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kdfed.partition import Partition, class_counts, make_partition
from kdfed.partitions import PartitionBase

LABELS = np.random.default_rng(0).permutation(np.arange(3000) % 10)
POOL = np.arange(500, 3000)


@pytest.fixture
def labels() -> np.ndarray:
    """Return those of 3,000 examples of 10 classes."""
    return LABELS


@pytest.fixture
def pool() -> np.ndarray:
    """Return the 2,500 examples of them that are dealt."""
    return POOL


@pytest.fixture
def deal() -> Callable[..., Partition]:
    """Return a function that deals the pool by some settings."""

    def dealt(settings: PartitionBase, seed: int = 0) -> Partition:
        return make_partition(settings, LABELS, POOL, 10, seed)

    return dealt


@pytest.fixture
def counts() -> Callable[[Partition], np.ndarray]:
    """Return a function that counts what everybody holds of each class, [P, 10]."""
    return lambda partition: class_counts(partition, LABELS, 10)
