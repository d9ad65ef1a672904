"""What kdfed uses of flwr-datasets beyond its documented interface. See :mod:`kdfed.private` for the rule."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["label_table"]


def label_table(labels: np.ndarray) -> Any:
    """Return a table of labels alone for a partitioner: column ``label``, and ``select`` answers in places.

    A partitioner wants a ``datasets.Dataset``, but ``DirichletPartitioner`` and ``PathologicalPartitioner``
    of 0.6.1 ask it for ``num_rows``, ``unique("label")``, ``["label"]`` and ``select(places)`` only. Hugging
    Face's own table takes seconds for the last two; this one answers in arrays. When they come to ask for
    more: a plain ``Dataset`` with a column of places does, and that column of a partition is the answer.

    Raises
    ------
    ImportError
        If ``datasets`` or ``pyarrow`` is missing.
    """
    import datasets
    import pyarrow

    class Labels(datasets.Dataset):  # type: ignore[misc]
        def __getitem__(self, key: str) -> np.ndarray:
            return labels

        def select(self, indices: Any) -> np.ndarray:
            return np.asarray(indices, dtype=np.int64)

    return Labels(pyarrow.table({"label": labels}))
