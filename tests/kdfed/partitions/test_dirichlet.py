from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdfed.partition import Partition
from kdfed.partitions import DirichletPartition
from kdfed.seeding import numpy_generator

Deal, Counts = Callable[..., Partition], Callable[[Partition], np.ndarray]


def test_a_large_alpha_makes_dirichlet_uniform_and_a_small_one_gives_classes_away_whole(
    deal: Deal, counts: Counts, labels: np.ndarray, pool: np.ndarray
) -> None:
    even = counts(deal(DirichletPartition(participants=10, alpha=1e6)))
    assert abs(even - np.bincount(labels[pool]) / 10).max() <= 1.5
    alone = counts(deal(DirichletPartition(participants=10, min_examples=1, alpha=1e-5)))
    assert (alone.max(axis=0) / alone.sum(axis=0)).mean() > 0.95


def test_dirichlet_agrees_with_a_slow_twin_on_the_library_itself(
    deal: Deal, labels: np.ndarray, pool: np.ndarray
) -> None:
    """The same draw on a Hugging Face table with its own selection, cut class by class."""
    import datasets
    from flwr_datasets.partitioner import DirichletPartitioner

    generator = numpy_generator(4, "partition")
    order = generator.permutation(pool)
    partitioner = DirichletPartitioner(
        num_partitions=6,
        partition_by="label",
        alpha=0.5,
        min_partition_size=0,
        self_balancing=False,
        seed=int(generator.integers(2**32)),
    )
    partitioner.dataset = datasets.Dataset.from_dict({"label": labels[order], "index": order})
    twin = [sorted(partitioner.load_partition(part)["index"]) for part in range(6)]
    mine = deal(DirichletPartition(participants=6, alpha=0.5), seed=4)
    assert mine.moved == 0
    assert [part.tolist() for part in mine.indices] == twin
