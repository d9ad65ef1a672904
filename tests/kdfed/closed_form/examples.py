"""Examples and slow twins that the tests of heads share. N examples, D features, C classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdfed.closed_form import ClosedFormHead, Linear, Sums
from kdfed.task import CLASSIFICATION, Task

CLASSES, DIMS = 4, 6


def some_examples(
    count: int = 60, dims: int = DIMS, classes: int = CLASSES, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [N, D], float32, around a mean for each class, the same for all seeds, and labels
    [N]."""
    means = 2 * torch.randn(classes, dims, generator=torch.Generator().manual_seed(0)) + 1
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return means[labels] + torch.randn(count, dims, generator=generator), labels


def numbers_for(features: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return labels of a regression, [N]."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(features.shape[1], generator=generator)
    values = features @ slope + torch.randn(len(features), generator=generator)
    return (values - values.mean()) / values.std()


def summed(
    head: ClosedFormHead,
    features: torch.Tensor,
    labels: torch.Tensor,
    parts: Sequence[Sequence[int]] | None = None,
    task: Task = CLASSIFICATION,
    classes: int = CLASSES,
    seed: int = 7,
) -> Sums:
    """Return what arrives at the server from participants that hold these examples, checked and added."""
    total = None
    for part in parts if parts is not None else [range(len(labels))]:
        index = list(part)
        arrays = head.statistics(features[index], labels[index], classes, task, seed)
        assert head.problem_with(arrays, features.shape[1], classes, task, len(index)) is None
        total = head.sums(arrays) if total is None else total + head.sums(arrays)
    assert total is not None
    return total


def solved(
    head: ClosedFormHead,
    features: torch.Tensor,
    labels: torch.Tensor,
    parts: Sequence[Sequence[int]] | None = None,
    task: Task = CLASSIFICATION,
    classes: int = CLASSES,
    seed: int = 7,
) -> Linear:
    """Return the head in float64, as it is before it becomes a layer of a model."""
    return head.fit(summed(head, features, labels, parts, task, classes, seed), None)


def partitions_of(count: int) -> list[list[list[int]]]:
    """Return ways to hold so many examples: in turn, one each, in unequal runs, one participant with none."""
    return [
        [list(range(start, count, 3)) for start in range(3)],
        [[one] for one in range(count)],
        [list(range(5)), [], list(range(5, count))],
    ]
