"""Arrow tables, of parquet files and of Hugging Face data sets, with an image column or feature columns.

What columns mean is read from the Hugging Face features that the file or data set declares: ``Image`` is a
struct of bytes and path, ``ClassLabel`` holds indices and the names of the classes.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from kdfed.data.checks import check_memory
from kdfed.data.dataset import (
    Listing,
    NoLabelsError,
    check_labels,
    check_numbers,
    class_names,
    labels_from_names,
    one_form,
    repeated,
    require,
    unlabelled,
)
from kdfed.data.images import opener, read_images
from kdfed.errors import DataError, one_line
from kdfed.settings import ColumnSettings, DataSettings

Features = dict[str, dict[str, Any]]
"""Hugging Face features by column: ``_type`` and, for ClassLabel, ``names``."""


def release_memory() -> None:
    """Give back what Arrow keeps of tables that are gone: some 300 MB a process for CIFAR-10."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()


def checked_features(features: Any, source: str) -> Features:
    """Return the features of the columns that have one type; nested ones (lists) say nothing to us.

    Raises
    ------
    DataError
        If they are no mapping of columns to features, or the names of a ClassLabel are no names.
    """
    if not isinstance(features, dict):
        raise DataError(
            f"expected the Hugging Face features of {source} by column, got {one_line(features, 100)}"
        )
    checked: Features = {}
    for column, feature in features.items():
        kind, names = (
            (feature.get("_type"), feature.get("names")) if isinstance(feature, dict) else (None, None)
        )
        if isinstance(feature, list) or (isinstance(feature, dict) and kind is None):
            continue
        is_named = isinstance(names, list | None) and all(isinstance(name, str) for name in names or [])
        if not isinstance(kind, str) or (kind == "ClassLabel" and not is_named):
            raise DataError(
                f"expected a Hugging Face feature with its _type, and a list of names where it is a "
                f"ClassLabel, for column {column!r} of {source}, got {one_line(feature, 100)}"
            )
        checked[one_form([column])[0]] = feature
    return checked


def list_tables(
    parts: dict[str, Any],
    is_test: list[bool],
    features: Features,
    settings: DataSettings,
    source: str,
    read_column: Callable[[str], Any],
    *,
    labelled: bool = True,
) -> Listing:
    """List the examples of tables.

    Parameters
    ----------
    parts
        The tables, by what names each of them in messages.
    is_test
        Of each, whether it is official test data.
    features
        What the columns are declared to be.
    settings
        The section ``data``.
    source
        For messages.
    read_column
        Takes a column's name, reads that column alone from all tables once more: nobody knows while they are
        read which one a partition will ask for, and a table that is kept costs as much as its inputs.
    labelled
        False lists inputs alone.

    Raises
    ------
    NoLabelsError
        If there is no such label column.
    DataError
        If columns are missing, or do not hold what they must.
    """
    asked = settings.columns or ColumnSettings()
    table = require("pyarrow", "edge").concat_tables(parts.values())
    if len(table) == 0:
        raise DataError(f"expected examples in {source}, got none")
    stored = dict(zip(one_form(table.column_names), table.column_names, strict=True))
    table = table.rename_columns(list(one_form(table.column_names)))
    if repeated(table.column_names):
        raise DataError(
            f"expected columns of different names in {source}, got {one_line(repeated(table.column_names))} "
            "more than once: rename them"
        )
    label, inputs = "", one_form(_as_tuple(asked.inputs))
    if labelled:
        # A column of classes is no number to predict: it is not taken by itself.
        label = asked.label or _label_column(table, features if settings.task == "classification" else {})
        (label,) = one_form([label])
    for name in (label, *inputs) if labelled else inputs:
        if name not in table.column_names:
            missing = f"{source} has no column {name!r}; it has {one_line(table.column_names)}"
            raise (NoLabelsError if name == label else DataError)(missing, "data.columns")
    if asked.inputs == () or repeated([label, *inputs]):
        raise DataError(
            f"expected one or more different input columns, none of them the label {label!r}, got "
            f"{one_line(list(inputs))}",
            "data.columns.inputs",
        )
    sizes, files = [len(part) for part in parts.values()], list(parts)
    ends = np.cumsum(sizes)

    def where(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        text = f"row {row - int(ends[part]) + sizes[part]}"
        return text if len(files) == 1 else f"{text} of {files[part]}"

    names: tuple[str, ...] = ()
    labels = unlabelled(len(table))
    if labelled:
        names, labels = _labels(table[label], features.get(label, {}), settings, source, where)
    by_default = not inputs
    inputs = inputs or _input_columns(table, features, label, where)
    if len(inputs) == 1 and _is_image(table, features, inputs[0]):
        read = _image_reader(table[inputs[0]], settings, f"column {inputs[0]!r} of {source}", where)
    else:
        read = _feature_reader(table, inputs, source, where)
    test, columns = np.repeat(is_test, sizes), ColumnSettings(inputs=inputs, label=label or None)

    def values_of(name: str) -> np.ndarray:
        (name,) = one_form([name])
        if name not in stored:
            raise DataError(
                f"{source} has no column {name!r}; it has {one_line(list(stored))}", "partition.column"
            )
        if by_default and name in inputs:
            raise DataError(
                f"column {name!r} of {source} says who somebody is, and would be an input too, as every "
                "numeric column is by default: name the inputs in data.columns.inputs",
                "data.columns.inputs",
            )
        return _values(read_column(stored[name]), name, source, where)

    return Listing(
        labels, names, read, test if test.any() else None, None, None, False, columns, values_of, where
    )


def _values(column: Any, name: str, source: str, where: Callable[[int], str]) -> np.ndarray:
    """Return what a column holds, [N]: whole numbers, or texts as objects.

    Raises
    ------
    DataError
        If a value is missing, or they are neither texts nor whole numbers.
    """
    arrow, types = require("pyarrow", "edge"), require("pyarrow.types", "edge")
    key = "partition.column"
    expected = f"expected texts, whole numbers or dates in column {name!r} of {source}, one a participant"
    if column.null_count:
        raise DataError(
            f"expected a value in every row of column {name!r} of {source}, {column.null_count} are missing, "
            f"the first in {where(column.is_null().index(True).as_py())}: fill or drop them",
            key,
        )
    column = _plain(column)
    if types.is_date(column.type):
        column = column.cast(arrow.string())
    if _is_text(column.type):
        column = require("pyarrow.compute", "edge").utf8_normalize(column.cast(arrow.string()), "NFC")
        texts: np.ndarray = column.to_numpy()
        return texts
    kind = column.type
    if not (types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind)):
        raise DataError(f"{expected}, got {kind}", key)
    numbers: np.ndarray = column.to_numpy()
    if types.is_integer(kind):
        return numbers
    broken = np.flatnonzero(~((np.floor(numbers) == numbers) & (np.abs(numbers) < 2**53)))
    if len(broken):
        raise DataError(f"{expected}, got {numbers[broken[0]]} in {where(int(broken[0]))}", key)
    return numbers.astype(np.int64)


def _as_tuple(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _is_image(table: Any, features: Features, name: str) -> bool:
    kind = table.schema.field(name).type
    fields = {kind.field(index).name for index in range(kind.num_fields)}
    return features.get(name, {}).get("_type") == "Image" or fields == {"bytes", "path"}


def _label_column(table: Any, features: Features) -> str:
    declared = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if len(declared) == 1:
        return declared[0]
    if "label" in table.column_names:
        return "label"
    found = f"{len(declared)} columns of classes {declared}" if declared else "none"
    raise NoLabelsError(
        f"expected one column of classes, or one named 'label', got {found} among {table.column_names}: set "
        "data.columns.label",
        "data.columns.label",
    )


def _is_number(kind: Any) -> bool:
    types = require("pyarrow.types", "edge")
    return any(
        is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    )


def _is_text(kind: Any) -> bool:
    types = require("pyarrow.types", "edge")
    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view))


def _plain(column: Any) -> Any:
    """Return a column without its dictionary."""
    types = require("pyarrow.types", "edge")
    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column


def _input_columns(
    table: Any, features: Features, label: str, where: Callable[[int], str]
) -> tuple[str, ...]:
    images = [name for name in table.column_names if _is_image(table, features, name)]
    if len(images) == 1:
        return (images[0],)
    numbers = tuple(
        field.name
        for field in table.schema
        if field.name != label
        and _is_number(field.type)
        and features.get(field.name, {}).get("_type") != "ClassLabel"
    )
    if images or not numbers:
        raise DataError(
            f"expected one image column or numeric columns, got {one_line(images or table.column_names)}: "
            "set data.columns.inputs",
            "data.columns.inputs",
        )
    for name in table.column_names:
        if name != label:
            _check_left_out(name, _plain(table[name]), where)
    return numbers


def _check_left_out(name: str, column: Any, where: Callable[[int], str]) -> None:
    """Refuse to leave out in silence a column that is text because of single values, or that is empty."""
    if len(column) == column.null_count:
        raise DataError(
            f"expected values in column {name!r}, all of them are missing: drop it, or name the others in "
            "data.columns.inputs",
            "data.columns.inputs",
        )
    if not _is_text(column.type):
        return
    distinct = column.unique().to_pylist()
    numbers = [value for value in distinct if value is not None and _reads_as_number(value)]
    if numbers:
        words = [value for value in distinct if value is not None and not _reads_as_number(value)]
        value = (words or numbers)[0]
        row = where(column.index(value).as_py())
        kind = "text among numbers" if words else "numbers as text"
        raise DataError(
            f"column {name!r} holds {kind}, {one_line(value, 50)!r} in {row}, so that it is no feature: make "
            "all of it numbers, or name the columns to use in data.columns.inputs",
            "data.columns.inputs",
        )


def _reads_as_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _labels(
    column: Any, feature: dict[str, Any], settings: DataSettings, source: str, where: Callable[[int], str]
) -> tuple[tuple[str, ...], np.ndarray]:
    if column.null_count:
        first = column.is_null().index(True).as_py()
        raise DataError(
            f"expected a label in every row of {source}, {column.null_count} are missing, the first in "
            f"{where(first)}"
        )
    column = _plain(column)
    if settings.task == "regression":
        numbers = column.to_numpy()
        is_decimal = numbers.dtype == object and _is_number(column.type)
        return (), check_numbers(numbers.astype(np.float64) if is_decimal else numbers, source, where)
    if _is_text(column.type):
        names = class_names(settings, None, needs_names=True)
        return names, check_labels(labels_from_names(column.to_pylist(), names, source), len(names), source)
    declared = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    names = class_names(settings, tuple(declared) if declared else None)
    return names, check_labels(column.to_numpy(), len(names), source, where)


def _image_reader(column: Any, settings: DataSettings, source: str, where: Callable[[int], str]) -> Any:
    open_image = opener()

    def load(row: int) -> Any:
        stored = column[row].as_py() or {}
        if not isinstance(stored, dict):
            raise TypeError(f"expected bytes and path, got {type(stored).__name__}")
        if stored.get("bytes") is not None:
            return open_image(io.BytesIO(stored["bytes"]))
        if not os.path.isfile(stored.get("path") or ""):
            raise ValueError(f"it has neither bytes nor the path of a file ({one_line(stored.get('path'))})")
        return open_image(stored["path"])

    return lambda rows: read_images(rows, load, settings.shape, source, where)


def _feature_reader(table: Any, names: tuple[str, ...], source: str, where: Callable[[int], str]) -> Any:
    for name in names:
        kind = table.schema.field(name).type
        if not _is_number(kind):
            raise DataError(
                f"expected numbers in the feature column {name!r} of {source}, got {kind}",
                "data.columns.inputs",
            )

    def read(rows: np.ndarray) -> np.ndarray:
        check_memory(
            4 * len(rows) * len(names),
            f"{len(rows)} rows of {len(names)} features",
            "lower data.limit",
            "data.limit",
        )
        inputs = np.empty((len(rows), len(names)), dtype=np.float32)
        for column, name in enumerate(names):
            with np.errstate(over="ignore"):
                inputs[:, column] = table[name].to_numpy()[rows]
            bad = np.flatnonzero(~np.isfinite(inputs[:, column]))
            if len(bad):
                raise DataError(
                    f"expected a number in every row of column {name!r} of {source}, {len(bad)} are missing "
                    f"or infinite in float32, the first in {where(int(rows[bad[0]]))}: fill or drop them",
                    "data.columns.inputs",
                )
        return inputs

    return read
