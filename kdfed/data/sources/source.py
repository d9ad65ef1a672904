"""What a data source is.

A source lists its labels first (:class:`~kdfed.data.dataset.Listing`); inputs are read afterwards, and only
those of the rows that ``data.limit`` draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdfed.data.dataset import Listing
from kdfed.settings import DataSettings

Loader = Callable[[str, DataSettings], Listing]
"""Takes what stands behind the colon, and the settings."""


@dataclass(frozen=True)
class Source:
    """One kind of data source.

    Parameters
    ----------
    description
        One line for ``kdfed list``.
    list_examples
        Lists the examples; raises DataError.
    task
        The only task whose labels it has. Default: both.
    list_inputs
        Lists examples without labels, where ``list_examples`` raises NoLabelsError. Default: it has labels.
    """

    description: str
    list_examples: Loader
    task: Literal["classification", "regression"] | None = None
    list_inputs: Loader | None = None


def reader_of(inputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what reads rows of an array in memory, without a copy when all of them are wanted."""
    return lambda rows: inputs if len(rows) == len(inputs) else inputs[rows]
