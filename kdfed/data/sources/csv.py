"""Text tables: rows of features and a label, separated by commas."""

from __future__ import annotations

from functools import partial
from typing import Any

from kdfed.data.checks import check_memory
from kdfed.data.dataset import Listing, require
from kdfed.data.folders import files_in, is_test_part
from kdfed.data.sources.source import Source
from kdfed.data.tables import list_tables
from kdfed.errors import DataError, one_line
from kdfed.settings import DataSettings


def csv(argument: str, settings: DataSettings, *, labelled: bool = True) -> Listing:
    """CSV files with a header line: one, or all below a folder, in the order of their paths.

    Files named ``test-*.csv`` (or ``test.csv``) are the official test part. What columns mean is found as in
    parquet files.

    Raises
    ------
    DataError
        If there are none, one cannot be read, or their columns differ.
    """
    arrow, reader = require("pyarrow", "edge"), require("pyarrow.csv", "edge")
    path, files = files_in(argument, ".csv", "a CSV file")
    check_memory(
        sum(file.stat().st_size for file in files), f"the rows of {path}", "use a part of it", "data.source"
    )

    def read(file: Any) -> Any:
        try:
            return reader.read_csv(file)
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"cannot read {file} as CSV: {one_line(error)}") from error

    tables = [read(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if not table.schema.equals(tables[0].schema):
            raise DataError(f"expected the same columns in all files, {files[0]} and {file} differ")
    is_test = [is_test_part(file) for file in files]
    parts = {str(file.relative_to(path)): table for file, table in zip(files, tables, strict=True)}

    def read_column(name: str) -> Any:
        return arrow.concat_tables([read(file) for file in files])[name]

    return list_tables(parts, is_test, {}, settings, str(path), read_column, labelled=labelled)


SOURCE = Source(
    "csv:PATH, a file or folder: a table with a header line",
    csv,
    list_inputs=partial(csv, labelled=False),
)
