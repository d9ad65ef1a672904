"""The partition ``label-overlap``: own groups of classes, plus a share of everybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kdfed.partitions.scheme import PartitionBase
from kdfed.settings import PositiveInt, Share


class LabelOverlapPartition(PartitionBase):
    """Label skew with overlap: a participant draws from its own group of classes and, in part, from all."""

    kind: Literal["label-overlap"] = "label-overlap"
    """The data distribution."""
    classes: PositiveInt = 2
    """Classes in a participant's own group. With fewer participants than groups, what belongs to the
    groups of nobody is left out."""
    overlap: Share
    """Share of a participant's examples drawn from all classes alike: 0 is disjoint groups, 1 is uniform."""

    def problem_with(self, labels: np.ndarray, classes: int) -> tuple[str, str] | None:
        """Ask for as many classes as a group has."""
        if self.classes <= classes:
            return None
        return "partition.classes", f"expected at most the {classes} classes of the data, got {self.classes}"

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Deal a share of every class to everybody alike, the rest to participants of the class's own group.

        Classes are shuffled and cut into groups of ``classes`` (the last may be smaller); participant p
        belongs to group p modulo the number of groups. The own examples of a group without a participant are
        unused.
        """
        size = self.classes
        group_of = np.empty(classes, dtype=np.int64)
        group_of[generator.permutation(classes)] = np.arange(classes) // size
        common: list[np.ndarray] = []
        own: list[list[np.ndarray]] = [[] for _ in range(-(-classes // size))]
        for label in range(classes):
            indices = np.flatnonzero(labels == label)
            cut = round(self.overlap * len(indices))
            common.append(indices[:cut])
            own[group_of[label]].append(indices[cut:])
        parts = [[part] for part in _cut(common, self.participants, generator)]
        for group, indices_of_group in enumerate(own):
            members = range(group, self.participants, len(own))
            if members:
                for member, part in zip(
                    members, _cut(indices_of_group, len(members), generator), strict=True
                ):
                    parts[member].append(part)
        return [generator.permutation(np.concatenate(part)) for part in parts]


def _cut(indices: list[np.ndarray], parts: int, generator: np.random.Generator) -> list[np.ndarray]:
    return np.array_split(generator.permutation(np.concatenate(indices)), parts)
