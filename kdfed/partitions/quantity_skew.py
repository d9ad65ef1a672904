"""The partition ``quantity-skew``: labels as they come, sizes from a Dirichlet distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kdfed.partitions.dirichlet import dirichlet
from kdfed.partitions.scheme import PartitionBase
from kdfed.settings import Concentration


class QuantitySkewPartition(PartitionBase):
    """IID labels, sizes drawn from a symmetric Dirichlet distribution."""

    kind: Literal["quantity-skew"] = "quantity-skew"
    """The data distribution."""
    alpha: Concentration
    """Concentration of the sizes, above 0; smaller is more skewed."""

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Deal one class that holds all: the draw over participants is then a draw of their sizes."""
        return dirichlet(np.zeros_like(labels), self.participants, self.alpha, generator)
