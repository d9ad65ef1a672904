from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.data import Dataset, load_source
from kdfed.device_data import DeviceData, own_data
from kdfed.errors import DataError
from kdfed.settings import DataSettings
from tests.npy_files import npy


def load(path: Path, **settings: Any) -> Dataset:
    return load_source(DataSettings(source=f"npz:{path}", **settings))


TABLE = DeviceData(
    classes=("x", "y"), shape=(5,), mean=(60.0,) * 5, std=(40.0,) * 5, run="a/b-1/0123456789abcdef"
)

IMAGES = np.arange(4 * 6, dtype=np.uint8).reshape(4, 1, 2, 3)


def test_images_and_the_places_of_their_classes_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=IMAGES, labels=[0, 2, 1, 0])
    data = load(tmp_path / "a.npz", classes=("x", "y", "z"))
    assert np.array_equal(data.inputs[:], IMAGES)
    assert data.labels.tolist() == [0, 2, 1, 0]
    assert data.class_names == ("x", "y", "z")


def test_grey_images_need_no_channel_and_labels_can_be_names(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", inputs=IMAGES[:, 0], labels=["z", "x", "x", "z"])
    data = load(tmp_path / "a.npz", classes=("x", "y", "z"))
    assert np.array_equal(data.inputs[:], IMAGES)
    assert data.labels.tolist() == [2, 0, 0, 2]


def test_classes_can_stand_in_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=IMAGES, labels=[0, 1, 1, 0], classes=["x", "y"])
    assert load(tmp_path / "a.npz").class_names == ("x", "y")
    with pytest.raises(DataError, match=r"declares the classes \['x', 'y'\], data.classes says \['y', 'x'\]"):
        load(tmp_path / "a.npz", classes=("y", "x"))


def test_whole_numbers_are_features_too_and_a_regression_has_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=np.arange(8).reshape(4, 2), labels=[0.5, 1, 2, 3])
    data = load(tmp_path / "a.npz", task="regression")
    assert data.inputs[:].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert data.labels.tolist() == [0.5, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_whole_numbers_keep_their_unit_and_are_those_of_a_table_of_floats(dtype: Any, tmp_path: Path) -> None:
    """Features are never divided by 255, as pixels are: whoever reads them as floats learns the same bits."""
    rows = np.random.default_rng(1).integers(0, 120, size=(6, 5)).astype(dtype)
    made = []
    for name, inputs in (("whole", rows), ("floats", rows.astype(np.float32))):
        np.savez(tmp_path / f"{name}.npz", inputs=inputs, labels=[0, 1, 0, 1, 0, 1])
        data = own_data(TABLE, f"npz:{tmp_path}/{name}.npz")
        assert data.dataset.inputs.dtype == np.float32
        made.append(data.examples(data.splits.train).inputs)
    assert torch.equal(*made)
    assert torch.equal(made[0], (torch.from_numpy(rows.astype(np.float32)) - 60) / 40)


def test_bytes_are_made_floats_of_four_bytes_and_no_larger_ones(tmp_path: Path) -> None:
    rows = np.arange(2**20, dtype=np.uint32).astype(np.uint8).reshape(2**10, 2**10)
    np.savez(tmp_path / "a.npz", inputs=rows, labels=np.arange(2**10) % 2)
    tracemalloc.start()
    try:
        data = load(tmp_path / "a.npz", classes=("x", "y"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data.inputs.dtype == np.float32
    assert peak < (1 + 4 + 2) * 2**20, "the bytes, the floats, and what is looked at while they are checked"


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"inputs": IMAGES}, r"\['labels'\] missing"),
        ({"x": IMAGES}, r"\['inputs', 'labels'\] missing"),
        ({"inputs": IMAGES, "labels": [0, 1]}, "as many labels as inputs .* got 2 and 4"),
        ({"inputs": IMAGES, "labels": [0, 1, 5, 0]}, "expected labels from 0 to 1"),
        ({"inputs": IMAGES, "labels": ["x", "y", "w", "x"]}, r"holds the classes \['w'\]"),
        (
            {"inputs": np.zeros((4, 2, 2, 2, 2)), "labels": [0] * 4},
            r"expected uint8 \[N, C, H, W\] or numbers",
        ),
        ({"inputs": np.array([[{}]] * 4, dtype=object), "labels": [0] * 4}, "expected numbers, got object"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(arrays: dict[str, Any], why: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=why):
        load(tmp_path / "a.npz", classes=("x", "y"))


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"not a file of numpy.savez")
    with pytest.raises(DataError, match="as arrays of numpy"):
        load(tmp_path / "a.npz", classes=2)
    with pytest.raises(DataError, match="which does not exist"):
        load(tmp_path / "gone.npz", classes=2)


def test_a_header_that_asks_for_more_than_there_is_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("inputs.npy", npy((10**12, 4), "<f4"))
        archive.writestr("labels.npy", npy((10**12, 4), "<f4"))
    with pytest.raises(DataError, match="its header asks for"):
        load(tmp_path / "a.npz", classes=2)


@pytest.mark.parametrize(("field", "value"), [(10, 99), (8, 1)])
def test_an_archive_that_python_cannot_unpack_is_refused(tmp_path: Path, field: int, value: int) -> None:
    """Packed in a way that nobody knows, and encrypted: what each entry of the directory says."""
    np.savez(tmp_path / "a.npz", inputs=IMAGES, labels=[0, 1, 1, 0])
    content = bytearray((tmp_path / "a.npz").read_bytes())
    place = content.find(b"PK\1\2")
    while place >= 0:
        content[place + field] = value
        place = content.find(b"PK\1\2", place + 1)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path / "a.npz", classes=2)


def test_an_archive_whose_bytes_are_broken_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", inputs=np.arange(4000.0).reshape(4, 1000), labels=[0, 1, 1, 0])
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[100:200] = b"\xff" * 100
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path / "a.npz", classes=2)
