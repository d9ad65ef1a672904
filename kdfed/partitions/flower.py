"""The partitioners of flwr-datasets, on labels alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from kdfed.errors import DataError
from kdfed.private.flwr_datasets import label_table


def by_flower(make: Callable[[Any], Any], labels: np.ndarray) -> list[np.ndarray]:
    """Run one of flwr-datasets' partitioners on labels; returns indices in random order."""
    with warnings.catch_warnings():
        try:
            import flwr_datasets.partitioner as partitioners

            warnings.simplefilter("ignore")  # on classes that nobody holds
            table = label_table(labels)
        except ImportError as error:
            raise DataError(
                f"this partition needs the package flwr-datasets: pip install 'kdfed[sim]' ({error})",
                "partition.kind",
            ) from error
        partitioner = make(partitioners)
        partitioner.dataset = table
        try:
            return [partitioner.load_partition(part) for part in range(partitioner.num_partitions)]
        except ValueError as error:
            raise DataError(
                f"cannot deal {len(labels)} examples: {error}", "partition.participants"
            ) from error
