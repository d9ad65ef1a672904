from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdfed.data import Dataset, load_source, prepare
from kdfed.errors import DataError
from kdfed.partition import partition_of
from kdfed.partitions import ColumnPartition
from kdfed.settings import DataSettings

TABLE = "heat,load,who,fault\n1.5,2,b,leak\n0.5,1,a,none\n3,4,b,none\n2,2,a,leak\n"


def load(path: Path, **settings: Any) -> Dataset:
    values: dict[str, Any] = {"columns": {"label": "fault"}, "classes": ("none", "leak")}
    return load_source(DataSettings(source=f"csv:{path}", **{**values, **settings}))


def test_a_table_is_read_as_a_parquet_file_would_be(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE)
    data = load(tmp_path / "a.csv", columns={"inputs": ["heat", "load"], "label": "fault"})
    assert data.inputs[:].tolist() == [[1.5, 2], [0.5, 1], [3, 4], [2, 2]]
    assert data.labels.tolist() == [1, 0, 0, 1]
    assert data.columns is not None
    assert data.columns.inputs == ("heat", "load")


def test_a_folder_of_files_is_one_table_and_test_files_are_its_test_part(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE)
    (tmp_path / "test.csv").write_text(TABLE)
    data = load(tmp_path)
    assert len(data) == 8
    assert data.official_test is not None
    assert data.official_test.tolist() == [4, 5, 6, 7]


def test_participants_can_be_dealt_by_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE + TABLE.partition("\n")[2] * 9)
    settings = DataSettings(
        source=f"csv:{tmp_path / 'a.csv'}",
        columns={"inputs": ["heat", "load"], "label": "fault"},
        classes=("none", "leak"),
    )
    data = prepare(settings)
    partition = partition_of(data, ColumnPartition(column="who"), 0)
    assert data.dataset.values_of is not None
    who = data.dataset.values_of("who")
    assert [set(who[indices]) for indices in partition.indices] == [{"a"}, {"b"}]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot read .* as CSV"),
        ("heat,fault\n1\n", "cannot read .* as CSV"),
        ("heat,fault\n", "expected examples"),
        ("heat,other\n1,leak\n", "has no column 'fault'"),
        ("heat,fault\n1,jam\n", r"holds the classes \['jam'\]"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=why):
        load(tmp_path / "a.csv")


def test_files_of_other_columns_and_paths_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a CSV file, or a folder"):
        load(tmp_path)
    (tmp_path / "a.csv").write_text(TABLE)
    (tmp_path / "b.csv").write_text(TABLE.replace("heat", "cold"))
    with pytest.raises(DataError, match="expected the same columns in all files"):
        load(tmp_path)
