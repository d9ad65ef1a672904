from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdfed.partition import Partition
from kdfed.partitions import UniformPartition
from kdfed.seeding import numpy_generator

Deal, Counts = Callable[..., Partition], Callable[[Partition], np.ndarray]


def test_uniform_sizes_differ_by_one_at_most_and_labels_are_mixed(deal: Deal, counts: Counts) -> None:
    partition = deal(UniformPartition(participants=7))
    assert np.ptp(partition.sizes) == 1
    assert counts(partition).min() > 15  # 2500 / 7 / 10 = 36 expected, standard deviation below 6


def test_uniform_agrees_with_the_librarys_partitioner(deal: Deal, pool: np.ndarray) -> None:
    import datasets
    from flwr_datasets.partitioner import IidPartitioner

    partitioner = IidPartitioner(7)
    order = numpy_generator(0, "partition").permutation(pool)
    partitioner.dataset = datasets.Dataset.from_dict({"index": order})
    twin = [sorted(partitioner.load_partition(part)["index"]) for part in range(7)]
    assert [part.tolist() for part in deal(UniformPartition(participants=7)).indices] == twin
