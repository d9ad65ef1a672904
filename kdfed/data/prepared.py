"""Data made ready for training: loaded, split, and normalised when asked for.

Legend: N examples, C channels, H height, W width, F features.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from kdfed.data.checks import check_memory, check_normalised
from kdfed.data.dataset import Dataset
from kdfed.data.sources import load_source
from kdfed.data.splits import Splits, bin_edges, split, strata_of
from kdfed.data.tables import release_memory
from kdfed.device import to_device
from kdfed.errors import DataError
from kdfed.settings import DataSettings, NormaliseSettings
from kdfed.task import CLASSIFICATION, REGRESSION, TASKS, Task


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
        int64 [N]; standardised float32 [N] in a regression.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def without_labels(self) -> Examples:
        """Return the same inputs with labels that say nothing.

        They are -100, which ``cross_entropy`` ignores and no class has, or NaN in a regression.
        """
        nothing = math.nan if self.labels.is_floating_point() else -100
        return Examples(self.inputs, torch.full_like(self.labels, nothing))

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on a device."""
        return Examples(to_device(self.inputs, device), to_device(self.labels, device))


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A data set, its splits and its normalisation.

    Parameters
    ----------
    dataset, splits
        What was loaded, and how it is cut.
    normalisation
        Of the inputs.
    task
        What is learnt.
    label_mean, label_std
        By which a regression's labels are standardised; 0 and 1 where there are classes.
    """

    dataset: Dataset
    splits: Splits
    normalisation: Normalisation
    task: Task
    label_mean: float = 0.0
    label_std: float = 1.0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W) or (F,)."""
        return tuple(int(size) for size in self.dataset.inputs.shape[1:])

    @property
    def classes(self) -> int:
        """Number of outputs of a model: the classes, or 1 in a regression."""
        return len(self.dataset.class_names) if self.task is CLASSIFICATION else 1

    @functools.cached_property
    def strata(self) -> np.ndarray:
        """What examples are dealt by, int64 [N]: their classes, or the bin of a regression's label.

        The bins hold equally many examples of the train split.
        """
        labels = self.dataset.labels
        return strata_of(labels, labels[self.splits.train])

    @functools.cached_property
    def strata_names(self) -> tuple[str, ...]:
        """Names of the classes or bins, such as ``61–78``; a bin holds its lower edge."""
        if self.task is CLASSIFICATION:
            return self.dataset.class_names
        edges = [f"{edge:.4g}" for edge in bin_edges(self.dataset.labels[self.splits.train])]
        inner = (f"{low}–{high}" for low, high in itertools.pairwise(edges))
        return (f"< {edges[0]}", *inner, f"≥ {edges[-1]}") if edges else ("all",)

    def majority(self, indices: np.ndarray) -> float:
        """Return the share of the largest class among some examples; 0 in a regression, and of none."""
        if self.task is REGRESSION or len(indices) == 0:
            return 0.0
        return float(np.bincount(self.dataset.labels[indices]).max() / len(indices))

    def examples(self, indices: np.ndarray) -> Examples:
        """Return the normalised examples at int64 ``indices``, in their order."""
        return Examples(self.normalisation.apply(self.dataset.inputs[indices]), self.labels(indices))

    def labels(self, indices: np.ndarray) -> torch.Tensor:
        """Return the labels at int64 ``indices``: int64 [N], standardised float32 [N] in a regression."""
        labels = self.dataset.labels[indices]
        if self.task is REGRESSION:
            labels = ((labels.astype(np.float64) - self.label_mean) / self.label_std).astype(np.float32)
        return torch.tensor(labels)


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
    return prepare_dataset(dataset, split(dataset, settings), settings)


def prepare_dataset(dataset: Dataset, splits: Splits, settings: DataSettings) -> PreparedData:
    """Find the normalisation of a data set that was loaded and split.

    Raises
    ------
    DataError
        As :func:`prepare`.
    """
    held_out, shape = len(dataset) - len(splits.train), dataset.inputs.shape[1:]
    check_memory(
        4 * held_out * math.prod(shape),
        f"the {held_out} examples of the test, validation and transfer splits, float32 {shape},",
        "lower data.limit or data.splits, or choose a smaller shape",
        "data.splits",
    )
    task = TASKS[settings.task]
    scale = _label_scale(dataset.labels, splits, settings) if task is REGRESSION else (0.0, 1.0)
    normalisation = _normalisation(dataset, splits, settings)
    key = "data.source" if settings.normalise == "auto" else "data.normalise"
    check_normalised(dataset.inputs, normalisation.apply, settings.source, key)
    return PreparedData(dataset, splits, normalisation, task, *scale)


def _label_scale(labels: np.ndarray, splits: Splits, settings: DataSettings) -> tuple[float, float]:
    """Return mean and standard deviation of the transfer split's labels."""
    for name, part in vars(splits).items():
        if len(part) and np.ptp(labels[part]) == 0:
            raise DataError(
                f"expected different labels in every split of {settings.source}, all {len(part)} of {name} "
                f"are {labels[part][0]:g}: use more examples or other shares",
                "data.splits",
            )
    transfer = labels[splits.transfer].astype(np.float64)
    mean, std = float(transfer.mean()), float(transfer.std())
    furthest = labels[np.abs(labels - mean).argmax()]
    if abs(float(furthest) - mean) / std > float(np.finfo(np.float32).max):
        raise DataError(
            f"expected labels of {settings.source} that are finite in float32 once standardised by mean "
            f"{mean:g} and std {std:g} of the transfer split, {furthest:g} is not: correct or rescale them"
        )
    return mean, std


def _normalisation(dataset: Dataset, splits: Splits, settings: DataSettings) -> Normalisation:
    size, unit = dataset.inputs.shape[1], "channel" if dataset.is_images else "feature"
    asked, key = settings.normalise, "data.source"
    if isinstance(asked, NormaliseSettings):
        mean, std, key = asked.mean, asked.std, "data.normalise"
    elif dataset.mean is not None and dataset.std is not None:
        mean, std = dataset.mean, dataset.std
    elif dataset.is_images:
        mean, std = (0.5,) * size, (0.5,) * size
    else:
        transfer = dataset.inputs[splits.transfer].astype(np.float64)
        deviation = transfer.std(axis=0)
        deviation[deviation == 0] = 1.0  # a constant feature becomes 0
        mean, std = tuple(transfer.mean(axis=0).tolist()), tuple(deviation.tolist())
    if (len(mean), len(std)) != (size, size):
        raise DataError(
            f"expected one mean and std for each of the {size} {unit}s, got {len(mean)} and {len(std)}", key
        )
    for index, (middle, width) in enumerate(zip(mean, std, strict=True)):
        with np.errstate(over="ignore"):
            fits = np.isfinite(np.float32(middle)) and 0 < np.float32(width) < np.inf
        if not fits:
            raise DataError(
                f"expected a finite mean and a std above 0 in float32 for each {unit} of {settings.source}, "
                f"got {middle:g} and {width:g} for {unit} {index}",
                key,
            )
    return Normalisation(mean, std)
