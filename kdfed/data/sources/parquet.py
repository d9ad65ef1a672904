"""Parquet files, in the Hugging Face image layout or as tables of features."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from kdfed.data.checks import check_memory
from kdfed.data.dataset import Listing, require
from kdfed.data.folders import files_in, is_test_part
from kdfed.data.sources.source import Source
from kdfed.data.tables import Features, checked_features, list_tables
from kdfed.errors import DataError, one_line
from kdfed.settings import DataSettings


def parquet(argument: str, settings: DataSettings, *, labelled: bool = True) -> Listing:
    """Parquet files: one, or all below a folder, in the order of their paths.

    Files named ``test-*.parquet`` (or ``test.parquet``) are the official test part.

    Raises
    ------
    DataError
        If there are none, one cannot be read, or their columns or class names differ.
    """
    arrow, reader = require("pyarrow", "edge"), require("pyarrow.parquet", "edge")
    path, files = files_in(argument, ".parquet", "a parquet file")
    tables, features = [], []
    for file in files:
        try:
            stored = reader.ParquetFile(file)
            _check_size(stored.metadata, file)
            tables.append(stored.read())
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"cannot read {file} as parquet: {one_line(error)}") from error
        features.append(_declared(tables[-1].schema, file))
    for file, table, declared in zip(files, tables, features, strict=True):
        if declared != features[0] or not table.schema.equals(tables[0].schema):
            raise DataError(
                "expected the same columns and classes in all files, and the classes in the same order, "
                f"{files[0]} and {file} differ"
            )
    is_test = [is_test_part(file) for file in files]
    parts = {str(file.relative_to(path)): table for file, table in zip(files, tables, strict=True)}

    def read_column(name: str) -> Any:
        try:
            columns = [reader.ParquetFile(file).read(columns=[name]) for file in files]
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"cannot read column {name!r} of {path}: {one_line(error)}") from error
        return arrow.concat_tables(columns)[name]

    return list_tables(parts, is_test, features[0], settings, str(path), read_column, labelled=labelled)


SOURCE = Source(
    "parquet:PATH, a file or folder: Hugging Face image layout, or a table",
    parquet,
    list_inputs=partial(parquet, labelled=False),
)


def _check_size(metadata: Any, file: Path) -> None:
    """Refuse a file whose tables, as it says itself, do not fit in memory; a few kB can hold any number."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    needed = max(sum(group.total_byte_size for group in groups), 8 * metadata.num_rows)
    check_memory(
        needed, f"the {metadata.num_rows} rows of {file}", "use another file, or a part of it", "data.source"
    )


def _declared(schema: Any, file: Path) -> Features:
    """Return the Hugging Face features that a file declares; none where it has no such metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        return checked_features(json.loads(text)["info"]["features"], str(file))
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise DataError(
            f"expected {{'info': {{'features': ...}}}} as JSON in the metadata 'huggingface' of {file}, got "
            f"{one_line(text, 100)} ({type(error).__name__}: {one_line(error)}): write the file again, or "
            "remove its metadata"
        ) from error
