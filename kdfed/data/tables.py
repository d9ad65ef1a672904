"""Arrow tables: parquet files and Hugging Face data sets, with an image column or feature columns.

What columns mean is read from the Hugging Face features that the file or data set declares: ``Image`` is a
struct of bytes and path, ``ClassLabel`` holds indices and the names of the classes.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kdfed.config import ColumnSettings, DataSettings
from kdfed.data.dataset import (
    Listing,
    check_labels,
    check_numbers,
    class_names,
    labels_from_names,
    one_line,
    require,
)
from kdfed.data.images import opener, read_images
from kdfed.errors import DataError
from kdfed.paths import user_path

Features = dict[str, dict[str, Any]]
"""Hugging Face features by column: ``_type`` and, for ClassLabel, ``names``."""


def parquet(argument: str, settings: DataSettings) -> Listing:
    """Parquet files: one, or all below a folder, in the order of their paths.

    Files named ``test-*.parquet`` (or ``test.parquet``) are the official test part.

    Raises
    ------
    DataError
        If there are none, one cannot be read, or their columns or class names differ.
    """
    arrow, reader = require("pyarrow", "edge"), require("pyarrow.parquet", "edge")
    path = user_path(argument)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        absent = "" if path.exists() else ", which does not exist"
        raise DataError(f"expected a parquet file, or a folder that holds some, got {path}{absent}")
    tables, features = [], []
    for file in files:
        try:
            tables.append(reader.ParquetFile(file).read())
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"cannot read {file} as parquet: {one_line(error)}") from error
        features.append(_declared(tables[-1].schema))
    for file, table, declared in zip(files, tables, features, strict=True):
        if declared != features[0] or not table.schema.equals(tables[0].schema):
            raise DataError(
                f"expected the same columns and classes in all files, {files[0]} and {file} differ"
            )
    is_test = [file.stem == "test" or file.name.startswith("test-") for file in files]
    return _listing(tables, is_test, features[0], settings, str(path))


def hub(argument: str, settings: DataSettings) -> Listing:
    """Read a Hugging Face data set by name, or a local folder in the Hub's layout.

    The split ``test`` is the official test part; all other splits are joined. The library ``datasets`` loads
    it: flwr-datasets' ``FederatedDataset`` would do the same, and report its use over the network.

    Parameters
    ----------
    argument
        ``NAME`` or ``NAME@CONFIG``. With ``HF_HUB_OFFLINE=1`` the local cache is used.
    settings
        ``columns``, ``classes`` and ``shape`` as for parquet.

    Raises
    ------
    DataError
        If the data set can be neither found nor downloaded, or its splits differ.
    """
    datasets = require("datasets")
    name, _, config = (argument, "", "") if user_path(argument).exists() else argument.partition("@")
    try:
        loaded = datasets.load_dataset(_snapshot(name), config or None)
    except Exception as error:  # the library raises errors of many kinds
        raise DataError(f"cannot load the Hugging Face data set {name!r}: {one_line(error)}") from error
    parts = list(loaded.values())
    features = [part.features for part in parts]
    if any(declared != features[0] for declared in features):
        raise DataError(f"expected the same columns and classes in all splits of {name}: {list(loaded)}")
    tables = [part.with_format("arrow")[:] for part in parts]
    return _listing(
        tables, [split == "test" for split in loaded], features[0].to_dict(), settings, f"hf:{name}"
    )


def release_memory() -> None:
    """Give back what Arrow keeps of tables that are gone: some 300 MB a process for CIFAR-10."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()


def _snapshot(name: str) -> str:
    """Return the folder of a data set in the local cache of the Hub when offline, else the name."""
    hub = require("huggingface_hub")
    if Path(name).exists() or not hub.constants.HF_HUB_OFFLINE:
        return name
    try:
        return str(hub.snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return name  # the library may still have it as a prepared table


def _declared(schema: Any) -> Features:
    text = (schema.metadata or {}).get(b"huggingface")
    return dict(json.loads(text)["info"]["features"]) if text else {}


def _listing(
    tables: list[Any], is_test: list[bool], features: Features, settings: DataSettings, source: str
) -> Listing:
    columns = settings.columns or ColumnSettings()
    table = require("pyarrow", "edge").concat_tables(tables)
    # A column of classes is no number to predict: it is not taken by itself.
    label = columns.label or _label_column(table, features if settings.task == "classification" else {})
    for name in (label, *_as_tuple(columns.inputs)):
        if name not in table.column_names:
            raise DataError(f"{source} has no column {name!r}; it has {table.column_names}", "data.columns")
    names, labels = _labels(table[label], features.get(label, {}), settings, source)
    inputs = _as_tuple(columns.inputs) or _input_columns(table, features, label)
    test = np.repeat(is_test, [len(part) for part in tables])
    if len(inputs) == 1 and _is_image(table, features, inputs[0]):
        read = _image_reader(table[inputs[0]], settings, source)
    else:
        read = _feature_reader(table, inputs, source)
    return Listing(labels, names, read, test if test.any() else None)


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
    raise DataError(
        f"expected one column of classes, or one named 'label', got {found} among {table.column_names}: set "
        "data.columns.label",
        "data.columns.label",
    )


def _input_columns(table: Any, features: Features, label: str) -> tuple[str, ...]:
    types = require("pyarrow.types", "edge")
    images = [name for name in table.column_names if _is_image(table, features, name)]
    if len(images) == 1:
        return (images[0],)
    numbers = tuple(
        field.name
        for field in table.schema
        if field.name != label
        and (types.is_integer(field.type) or types.is_floating(field.type) or types.is_boolean(field.type))
        and features.get(field.name, {}).get("_type") != "ClassLabel"
    )
    if images or not numbers:
        raise DataError(
            f"expected one image column or numeric columns, got {images or table.column_names}: set "
            "data.columns.inputs",
            "data.columns.inputs",
        )
    return numbers


def _labels(
    column: Any, feature: dict[str, Any], settings: DataSettings, source: str
) -> tuple[tuple[str, ...], np.ndarray]:
    types = require("pyarrow.types", "edge")
    if column.null_count:
        raise DataError(f"expected a label in every row of {source}, {column.null_count} are missing")
    if settings.task == "regression":
        return (), check_numbers(column.to_numpy(), source)
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_string(column.type) or types.is_large_string(column.type):
        names = class_names(settings, None, needs_names=True)
        return names, check_labels(labels_from_names(column.to_pylist(), names, source), len(names), source)
    declared = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    names = class_names(settings, tuple(declared) if declared else None)
    return names, check_labels(column.to_numpy(), len(names), source)


def _image_reader(column: Any, settings: DataSettings, source: str) -> Any:
    open_image = opener()

    def load(row: int) -> Any:
        stored = column[row].as_py() or {}
        if stored.get("bytes") is not None:
            return open_image(io.BytesIO(stored["bytes"]))
        if not os.path.isfile(stored.get("path") or ""):
            raise ValueError("it has neither bytes nor the path of a file")
        return open_image(stored["path"])

    return lambda rows: read_images(rows, load, settings.shape, source)


def _feature_reader(table: Any, names: tuple[str, ...], source: str) -> Any:
    types = require("pyarrow.types", "edge")
    for name in names:
        kind = table.schema.field(name).type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise DataError(
                f"expected numbers in the feature column {name!r} of {source}, got {kind}",
                "data.columns.inputs",
            )

    def read(rows: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(rows), len(names)), dtype=np.float32)
        for place, name in enumerate(names):
            inputs[:, place] = table[name].to_numpy()[rows]
            bad = ~np.isfinite(inputs[:, place])
            if bad.any():
                raise DataError(
                    f"expected a number in every row of column {name!r} of {source}, {int(bad.sum())} are "
                    "missing or infinite: fill or drop them",
                    "data.columns.inputs",
                )
        return inputs

    return read
