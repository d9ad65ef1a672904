"""The partition ``k-classes``: pathological, everybody holds exactly k classes.

Shards are cut by flwr-datasets' ``PathologicalPartitioner``; dealing them is ours, because there participants
overlap where they need not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from kdfed.partitions.flower import by_flower
from kdfed.partitions.scheme import PartitionBase
from kdfed.settings import PositiveInt


class KClassesPartition(PartitionBase):
    """Pathological: every participant holds exactly k classes."""

    kind: Literal["k-classes"] = "k-classes"
    """The data distribution."""
    classes: PositiveInt
    """Classes that each participant holds, k. Where participants x k does not exceed the number of classes,
    participants are disjoint, and the examples of classes that nobody holds are left out."""

    keeps_classes: ClassVar[bool] = True

    def problem_with(self, labels: np.ndarray, classes: int) -> tuple[str, str] | None:
        """Ask for k classes among the examples."""
        present = len(np.unique(labels))
        if self.classes <= present:
            return None
        return "partition.classes", f"expected at most the {present} classes of the data, got {self.classes}"

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Cut P x k shards of one class each, and deal k of different classes to everyone.

        Shards are spread evenly over the classes. A participant takes the k classes with the most shards
        left, ties at random: so the shards always suffice, and nobody shares a class while P x k is at
        most K.
        """
        k = self.classes
        present, class_index = np.unique(labels, return_inverse=True)
        rank = generator.permutation(len(present))  # which classes get one shard more, or any, is random
        shards = by_flower(
            lambda partitioners: partitioners.PathologicalPartitioner(
                num_partitions=self.participants * k,
                partition_by="label",
                num_classes_per_partition=1,
                class_assignment_mode="deterministic",
                seed=int(generator.integers(2**32)),
            ),
            rank[class_index],
        )
        stacks = [shards[first :: len(present)] for first in range(len(present))]
        left = np.array([len(stack) for stack in stacks])
        parts = []
        for _ in range(self.participants):
            chosen = np.lexsort((generator.random(len(left)), -left))[:k]
            left[chosen] -= 1
            parts.append(generator.permutation(np.concatenate([stacks[c][left[c]] for c in chosen])))
        return parts
