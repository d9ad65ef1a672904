"""What a device must make of its own examples: the experiment decides, not the files that a device has.

The server tells it in every message, so that a client that was restarted knows it too: the classes in their
order, the shape of an input, the numbers of the normalisation. What the examples are, no message says.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from kdfed.data import Normalisation, PreparedData, Splits, load_source
from kdfed.data.checks import check_finite, check_memory
from kdfed.errors import DataError
from kdfed.settings import (
    ColumnSettings,
    DataSettings,
    NormaliseSettings,
    PositiveInt,
    Settings,
    Text,
    is_table,
)
from kdfed.task import TASKS

MOST_NUMBERS = 2**26
"""Of one input, as in a model's file: memory is taken for some."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

SOURCES = ("folder:", "parquet:", "csv:", "npz:")
"""What a device's data can be, beside code of its own."""


class DeviceData(Settings):
    """What a device must make of its own examples, and where it keeps what lasts between rounds."""

    task: Literal["classification", "regression"] = "classification"
    """What is learnt."""
    classes: Annotated[tuple[Text, ...], Field(max_length=100_000)] = ()
    """Their names, in the order of the model's outputs; none in a regression."""
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=3)]
    """``[channels, height, width]`` of an image, or ``[features]``."""
    resized: bool = False
    """Whether images are converted and resized to it; others must have it."""
    mean: tuple[Annotated[float, Field(ge=-1e30, le=1e30)], ...]
    """What is subtracted from each channel, after scaling to [0, 1], or from each feature..."""
    std: tuple[Annotated[float, Field(ge=1e-30, le=1e30)], ...]
    """...and what it is divided by then."""
    label_mean: float = 0.0
    """Of a regression: what is subtracted from a label..."""
    label_std: Annotated[float, Field(gt=0)] = 1.0
    """...and what it is divided by then."""
    columns: ColumnSettings | None = None
    """Which columns of a table hold what."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the training."""
    run: Annotated[str, Field(pattern=rf"^{_NAME}/{_NAME}-[0-9]{{1,10}}/[0-9a-f]{{16}}$")]
    """Experiment, arm and seed, and one run of them: participants keep nothing from one to another."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.shape) == 2 or {len(self.mean), len(self.std)} != {self.shape[0]}:
            raise ValueError("expected a mean and a std for each channel or feature")
        if math.prod(self.shape) > MOST_NUMBERS:
            raise ValueError(f"expected inputs of at most {MOST_NUMBERS} numbers")
        if bool(self.classes) != (self.task == "classification"):
            raise ValueError("expected classes in a classification, and there alone")
        return self

    @classmethod
    def of(cls, settings: DataSettings, data: PreparedData, precision: str, run: str) -> DeviceData:
        """Return what devices must know.

        Parameters
        ----------
        settings
            The section ``data``.
        data
            What was made of the server's own examples.
        precision, run
            See the fields.
        """
        return cls.model_validate(
            {
                "task": data.task.name,
                "classes": data.dataset.class_names,
                "shape": data.input_shape,
                "resized": settings.shape is not None,
                "mean": data.normalisation.mean,
                "std": data.normalisation.std,
                "label-mean": data.label_mean,
                "label-std": data.label_std,
                "columns": data.dataset.columns if settings.columns is None else settings.columns,
                "precision": precision,
                "run": run,
            }
        )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def settings(self, source: str) -> DataSettings:
        """Return the settings by which a device's own source is read."""
        return DataSettings(
            task=self.task,
            source=source,
            columns=self.columns if is_table(source) else None,
            classes=self.classes or None,
            shape=self.shape if self.resized else None,
            normalise=NormaliseSettings(mean=self.mean, std=self.std),
        )


@lru_cache(maxsize=4)
def own_data(wanted: DeviceData, source: str) -> PreparedData:
    """Read a device's own examples; all but those of an official test part are its train split.

    Parameters
    ----------
    wanted
        What must be made of them.
    source
        Of the device's own node-config.

    Raises
    ------
    DataError
        If they cannot be read, are of a class that the experiment does not name, or have another shape.
    """
    settings = wanted.settings(source)
    dataset = load_source(settings)
    shape = tuple(int(size) for size in dataset.inputs.shape[1:])
    if shape != wanted.shape:
        raise DataError(
            f"expected inputs of the shape {list(wanted.shape)}, which the experiment decides, got "
            f"{list(shape)} in {source}: set data.shape of the experiment, or correct the data"
        )
    check_memory(
        4 * len(dataset) * math.prod(shape),
        f"the {len(dataset)} examples of {source}, float32 {shape},",
        "use fewer of them, or a smaller data.shape",
        "data.shape",
    )
    normalisation = Normalisation(wanted.mean, wanted.std)
    check_finite(dataset.inputs, normalisation.apply, source, "data.normalise")
    held, none = np.arange(len(dataset), dtype=np.int64), np.empty(0, dtype=np.int64)
    if dataset.official_test is not None:
        held = np.setdiff1d(held, dataset.official_test)
    if len(held) == 0:
        raise DataError(f"expected examples to train on in {source}, got none beside its test part")
    splits = Splits(none, none, none, none, held)
    task = TASKS[wanted.task]
    return PreparedData(dataset, splits, normalisation, task, wanted.label_mean, wanted.label_std)
