"""The partition ``dirichlet``: each class is dealt by a draw from a Dirichlet distribution.

References
----------
Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv 1909.06335.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kdfed.partitions.flower import by_flower
from kdfed.partitions.scheme import PartitionBase
from kdfed.settings import Concentration


class DirichletPartition(PartitionBase):
    """Label skew: each class is dealt to participants by a draw from a symmetric Dirichlet distribution."""

    kind: Literal["dirichlet"] = "dirichlet"
    """The data distribution."""
    alpha: Concentration
    """Concentration, above 0; smaller is more skewed."""

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Deal each class by proportions from Dirichlet(alpha)."""
        return dirichlet(labels, self.participants, self.alpha, generator)


def dirichlet(
    labels: np.ndarray, participants: int, alpha: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Deal each class by proportions from Dirichlet(alpha), through flwr-datasets."""
    return by_flower(
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
