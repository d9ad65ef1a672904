"""Data made ready for training: loaded, split, and normalised when asked for.

Legend: N examples, C channels, H height, W width, F features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from kdfed.config import DataSettings, NormaliseSettings
from kdfed.data.dataset import Dataset
from kdfed.data.sources import load_source
from kdfed.data.splits import Splits, split
from kdfed.data.tables import release_memory
from kdfed.errors import DataError


@dataclass(frozen=True)
class Normalisation:
    """``(x - mean) / std`` per channel or per feature; uint8 images are scaled to [0, 1] first.

    Parameters
    ----------
    mean, std
        One number per channel or feature.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, inputs: np.ndarray) -> torch.Tensor:
        """Normalise uint8 [N, C, H, W] or float32 [N, F]; the result is float32 of the same shape."""
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        mean, std = (torch.tensor(values).reshape(shape) for values in (self.mean, self.std))
        result = torch.tensor(inputs, dtype=torch.float32)
        if inputs.dtype == np.uint8:
            result.div_(255)
        return result.sub_(mean).div_(std)


@dataclass(frozen=True, eq=False)
class Examples:
    """Normalised examples that a model can be trained on.

    Parameters
    ----------
    inputs
        float32 [N, C, H, W] or [N, F].
    labels
        int64 [N].
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on a device."""
        return Examples(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A data set, its splits and its normalisation."""

    dataset: Dataset
    splits: Splits
    normalisation: Normalisation

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W) or (F,)."""
        return tuple(int(size) for size in self.dataset.inputs.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.dataset.class_names)

    def examples(self, indices: np.ndarray) -> Examples:
        """Return the normalised examples at int64 ``indices``, in their order."""
        inputs = self.normalisation.apply(self.dataset.inputs[indices])
        return Examples(inputs, torch.tensor(self.dataset.labels[indices]))


@functools.lru_cache(maxsize=4)
def prepare(settings: DataSettings) -> PreparedData:
    """Load, split and find the normalisation; once per process for the same settings.

    Raises
    ------
    DataError
        If the data cannot be read or do not fit the settings; its ``key`` says what has to change.
    """
    dataset = load_source(settings)
    release_memory()
    splits = split(dataset, settings)
    return PreparedData(dataset, splits, _normalisation(dataset, splits, settings))


def _normalisation(dataset: Dataset, splits: Splits, settings: DataSettings) -> Normalisation:
    size = dataset.inputs.shape[1]
    asked = settings.normalise
    if isinstance(asked, NormaliseSettings):
        if len(asked.mean) != size:
            unit = "channel" if dataset.is_images else "feature"
            raise DataError(
                f"expected one mean and std for each of the {size} {unit}s, got {len(asked.mean)}",
                "data.normalise",
            )
        return Normalisation(asked.mean, asked.std)
    if dataset.mean is not None and dataset.std is not None:
        return Normalisation(dataset.mean, dataset.std)
    if dataset.is_images:
        return Normalisation((0.5,) * size, (0.5,) * size)
    transfer = dataset.inputs[splits.transfer].astype(np.float64)
    std = transfer.std(axis=0)
    std[std == 0] = 1.0  # a constant feature becomes 0
    return Normalisation(tuple(transfer.mean(axis=0).tolist()), tuple(std.tolist()))
