from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdfed.data import Dataset, load_source
from kdfed.errors import DataError
from kdfed.settings import DataSettings
from tests.kdfed.data.written import write, write_images


def load(path: Path, **settings: Any) -> Dataset:
    return load_source(DataSettings(source=f"parquet:{path}", **settings))


def test_files_named_test_are_the_official_test_part(tmp_path: Path) -> None:
    write_images(tmp_path / "data/train-00000-of-00001.parquet", 8)
    write_images(tmp_path / "data/test-00000-of-00001.parquet", 4)
    data = load(tmp_path)
    assert data.official_test is not None
    assert data.inputs[data.official_test, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert len(data) == 12


def test_a_path_that_holds_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a parquet file"):
        load(tmp_path / "gone")
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="as parquet"):
        load(tmp_path)


def test_files_of_differing_classes_are_refused(tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet", {"x": [1], "label": [0]}, {"label": {"_type": "ClassLabel", "names": ["a"]}}
    )
    write(
        tmp_path / "b.parquet", {"x": [1], "label": [0]}, {"label": {"_type": "ClassLabel", "names": ["b"]}}
    )
    with pytest.raises(DataError, match="same columns and classes in all files"):
        load(tmp_path)


def write_with(path: Path, metadata: bytes) -> Path:
    table = pa.table({"x": [1.0, 2.0], "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
    return path


@pytest.mark.parametrize(
    "metadata",
    [
        *(b"", b"\xff\xfe\x00", b"no JSON", b"[1]", b'"text"', b"7", b"{}", b"[" * 5000),
        *(b'{"info": 3}', b'{"info": null}', b'{"info": {}}', b'{"info": {"features": null}}'),
        *(b'{"info": {"features": ["label"]}}', b'{"info": {"features": "label"}}'),
        *(b'{"info": {"features": {"label": 3}}}', b'{"info": {"features": {"label": {"_type": 3}}}}'),
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"0": "a"}}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}}',
    ],
)
def test_damaged_metadata_is_an_error_that_names_the_file(tmp_path: Path, metadata: bytes) -> None:
    path = write_with(tmp_path / "a.parquet", metadata)
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        load(path, classes=2)
    assert "features" in str(caught.value) or "feature with its _type" in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(path))


def test_hidden_files_are_no_tables(tmp_path: Path) -> None:
    for name in ("a.parquet", ".ipynb_checkpoints/a-checkpoint.parquet", "._a.parquet", "__MACOSX/a.parquet"):
        write(tmp_path / "d" / name, {"x": [1, 2], "label": [0, 1]})
    assert len(load(tmp_path / "d", classes=2)) == 2


def test_a_table_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdfed.data import checks

    path = write(tmp_path / "a.parquet", {"x": np.zeros(50_000), "label": np.zeros(50_000, np.int64)})
    monkeypatch.setattr(checks, "machine_memory", lambda: 300_000)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda self: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"the 50000 rows of .*a\.parquet need"):
        load(path, classes=1)
