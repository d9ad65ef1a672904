"""The partitioners of flwr-datasets, on labels alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from kdfed.errors import DataError


def by_flower(make: Callable[[Any], Any], labels: np.ndarray) -> list[np.ndarray]:
    """Run one of flwr-datasets' partitioners on labels; returns indices in random order."""
    try:
        import datasets
        import flwr_datasets.partitioner as partitioners
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"this partition needs the package flwr-datasets: pip install 'kdfed[sim]' ({error})",
            "partition.kind",
        ) from error

    class Labels(datasets.Dataset):  # type: ignore[misc]
        """A table of labels that answers in arrays; Hugging Face's own takes seconds for the same."""

        def __getitem__(self, key: str) -> np.ndarray:
            return labels

        def select(self, indices: Any) -> np.ndarray:
            return np.asarray(indices, dtype=np.int64)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes that nobody holds
        partitioner = make(partitioners)
        partitioner.dataset = Labels(pyarrow.table({"label": labels}))
        try:
            return [partitioner.load_partition(part) for part in range(partitioner.num_partitions)]
        except ValueError as error:
            raise DataError(
                f"cannot deal {len(labels)} examples: {error}", "partition.participants"
            ) from error
