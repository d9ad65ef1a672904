"""``kdfed predict``: a saved model on the examples of a data source.

Legend: N examples, C outputs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from kdfed.config import parse_set
from kdfed.config.mistakes import describe_all
from kdfed.data import Dataset, load_source
from kdfed.errors import ConfigError, DataError, Mistake, near, shown
from kdfed.saved import Card, Predictor
from kdfed.settings import DataSettings, is_table
from kdfed.task import CLASSIFICATION

KEYS = ("columns", "limit", "shape")
"""Of the section ``data``: what can be set. The rest is what the model was trained with."""

_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of the examples of a source.

    Parameters
    ----------
    predictor
        The model.
    outputs
        float32 [N, C], logits; of a regression standardised values [N, 1].
    labels
        [N], as the source stores them; None where it has none.
    where
        Names an example.
    """

    predictor: Predictor
    outputs: torch.Tensor
    labels: np.ndarray | None
    where: Callable[[int], str]

    @property
    def line(self) -> str:
        """One line for people: how many there are, and how good they are where labels tell."""
        count = f"{len(self.outputs)} examples"
        if self.labels is None:
            return f"{count}, without labels"
        score = self.predictor.score(self.outputs, self.labels)
        return f"{self.predictor.task.metric_word} {score:.4f} of {count}"

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the header, then a row an example: its name, class and probability or number, and label."""
        is_classes = self.predictor.task is CLASSIFICATION
        names = ("class", "probability") if is_classes else ("value",)
        labels = self._named_labels()
        yield ("example", *names, *(() if labels is None else ("label",)))
        said = self.predictor.named(self.outputs)
        likeliest = self.outputs.softmax(1).amax(1).tolist() if is_classes else None
        for row, value in enumerate(said.tolist()):
            yield (
                self.where(row),
                value if is_classes else f"{value:.7g}",
                *(() if likeliest is None else (f"{likeliest[row]:.6f}",)),
                *(() if labels is None else (labels[row],)),
            )

    def csv(self) -> str:
        """Return all rows as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.rows())
        return text.getvalue()

    def _named_labels(self) -> Sequence[str] | None:
        if self.labels is None:
            return None
        if self.predictor.task is CLASSIFICATION:
            return [self.predictor.card.classes[label] for label in self.labels]
        return [f"{label:.7g}" for label in self.labels]


def predict_source(predictor: Predictor, source: str, assignments: Sequence[str] = ()) -> Predictions:
    """Let a model say what the examples of a source are.

    Parameters
    ----------
    predictor
        The model.
    source
        As the key ``data.source``; its labels are optional, where it is a table or a folder.
    assignments
        ``data.key=value`` for :data:`KEYS`. Default: what the model was trained with.

    Raises
    ------
    ConfigError
        If an assignment is wrong.
    DataError
        If the source cannot be read, or holds something else than what the model was trained on.
    """
    settings, asks_for_labels = settings_of(predictor.card, source, assignments)
    dataset = _load(predictor.card, settings, asks_for_labels)
    stored, wanted = tuple(dataset.inputs.shape[1:]), predictor.card.input_shape
    if stored != wanted:
        change = (
            f"set data.shape={list(wanted)} to convert images" if len(wanted) == 3 else "set data.columns"
        )
        raise DataError(
            f"expected examples of shape {list(wanted)}, as the model was trained on, got {list(stored)} in "
            f"{source}: {change}, or use another source"
        )
    starts = range(0, len(dataset), _BATCH)
    outputs = [predictor.outputs(np.asarray(dataset.inputs[start : start + _BATCH])) for start in starts]
    labels = dataset.labels if dataset.is_labelled else None
    return Predictions(predictor, torch.cat(outputs), labels, dataset.where)


def settings_of(card: Card, source: str, assignments: Sequence[str] = ()) -> tuple[DataSettings, bool]:
    """Return the section ``data`` for a model, and whether a label column was asked for by name."""
    given = parse_set(assignments)
    mistakes = [
        Mistake(key, f"expected one of {', '.join(f'data.{name}' for name in KEYS)}{near(key, KEYS)}")
        for key in _keys(given)
        if key.split(".")[:2] not in [["data", name] for name in KEYS]
    ]
    values: dict[str, Any] = {
        "source": source,
        "task": card.task,
        "classes": list(card.classes) or None,
        "shape": list(card.input_shape) if card.resized else None,
    }
    if card.columns is not None and is_table(source):
        values["columns"] = card.columns.model_dump(mode="json")
    chosen: Mapping[str, Any] = given.get("data", {}) if isinstance(given.get("data", {}), Mapping) else {}
    columns = chosen.get("columns")
    if isinstance(columns, Mapping):
        columns = {**values.get("columns", {}), **columns}
    values |= {**chosen, "columns": columns} if "columns" in chosen else chosen
    if not mistakes:
        try:
            read = DataSettings.model_validate_json(
                json.dumps(values), strict=True, by_alias=True, by_name=False
            )
            return read, "label" in (chosen.get("columns") or {})
        except ValidationError as error:
            found = describe_all(error.errors(), values, DataSettings)
            mistakes = [Mistake(f"data.{mistake.key}", mistake.message) for mistake in found]
    raise ConfigError("--set", mistakes)


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield dotted keys, two levels deep."""
    for key, value in values.items():
        if not prefix and isinstance(value, Mapping):
            yield from _keys(value, f"{key}.")
        else:
            yield f"{prefix}{key}"


def _load(card: Card, settings: DataSettings, labelled: bool) -> Dataset:
    try:
        return load_source(settings, labelled=labelled)
    except DataError as error:
        if error.key != "data.classes":
            raise
        raise DataError(
            f"expected the classes that the model was trained on, {shown(list(card.classes))}, in "
            f"{settings.source}: {str(error).removesuffix(': remove it')}",
            "data.classes",
        ) from error
