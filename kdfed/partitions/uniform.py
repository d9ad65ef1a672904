"""The partition ``uniform``: IID, as flwr-datasets' ``IidPartitioner`` cuts a shuffled set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kdfed.partitions.scheme import PartitionBase


class UniformPartition(PartitionBase):
    """IID: shuffled, equal sizes."""

    kind: Literal["uniform"] = "uniform"
    """The data distribution."""

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Cut the examples into equal slices."""
        indices, sizes = self.deal_flat(labels, classes, generator)
        return np.split(indices, np.cumsum(sizes)[:-1])

    def deal_flat(
        self, labels: np.ndarray, classes: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut without a list of slices: a million participants are no million arrays."""
        each, larger = divmod(len(labels), self.participants)
        return np.arange(len(labels)), each + (np.arange(self.participants) < larger)
