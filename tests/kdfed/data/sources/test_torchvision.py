from __future__ import annotations

import gzip
import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdfed.data import load_source, prepare
from kdfed.errors import DataError
from kdfed.settings import DataSettings, SplitSettings

Bomb = Callable[[int, int], bytes]
RNG = np.random.default_rng(0)


def picture(path: Path, value: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def idx(path: Path, array: np.ndarray) -> None:
    """Write an array as an IDX file: magic number 8 (unsigned bytes), rank, sizes, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, name: str = "MNIST") -> tuple[np.ndarray, np.ndarray]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images, labels = RNG.integers(0, 256, (50, 28, 28)), np.arange(50) % 10
    for part, rows in (("train", slice(0, 40)), ("t10k", slice(40, 50))):
        idx(raw / f"{part}-images-idx3-ubyte", images[rows])
        idx(raw / f"{part}-labels-idx1-ubyte", labels[rows])
        for file in list(raw.glob(f"{part}-*-ubyte")):
            with gzip.open(f"{file}.gz", "wb") as packed:
                packed.write(file.read_bytes())
    return images, labels


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_files_are_read_with_their_test_part(tmp_path: Path, name: str) -> None:
    images, labels = write_mnist(tmp_path, name)
    settings = DataSettings(
        source=f"torchvision:{name}@{tmp_path}",
        splits=SplitSettings(test="official", validation=0.2, transfer=0.2),
    )
    data = prepare(settings)
    assert np.array_equal(data.dataset.inputs[:, 0], images)
    assert np.array_equal(data.dataset.labels, labels)
    assert data.splits.test.tolist() == list(range(40, 50))
    assert len(data.dataset.class_names) == 10
    assert data.normalisation.mean in ((0.1307,), (0.2860,))


def test_a_limit_on_torchvision_draws_from_both_parts(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path)
    data = load_source(DataSettings(source=f"torchvision:MNIST@{tmp_path}", limit=20))
    assert data.official_test is not None
    assert 0 < len(data.official_test) < 10
    for image in data.inputs[data.official_test, 0]:
        assert (image == images[40:]).all(axis=(1, 2)).any()


def test_cifar10_batches_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's own layout: pickled batches, channels first in rows of 3072.

    Only the table of checksums, which holds those of the real files, is replaced by those of the files
    written here.
    """
    from torchvision.datasets import CIFAR10

    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = RNG.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        packed = pickle.dumps(content)
        (base / name).write_bytes(packed)
        return [name, hashlib.md5(packed).hexdigest()]

    def batch(rows: slice) -> dict[str, Any]:
        return {"data": pixels[rows].reshape(-1, 3072), "labels": (np.arange(60)[rows] % 10).tolist()}

    train = [write(f"data_batch_{n + 1}", batch(slice(10 * n, 10 * n + 10))) for n in range(5)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(slice(50, 60)))])
    names = [f"thing {index}" for index in range(10)]
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})

    data = load_source(DataSettings(source=f"torchvision:CIFAR10@{tmp_path}"))
    assert np.array_equal(data.inputs, pixels)
    assert data.labels.tolist() == [index % 10 for index in range(60)]
    assert data.class_names == tuple(names)
    assert data.official_test is not None
    assert data.official_test.tolist() == list(range(50, 60))


def test_svhn_matrices_are_read_and_need_the_number_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SVHN's own layout: MATLAB files X [32, 32, 3, N] and y [N, 1], in which 10 stands for the digit 0."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    pixels = RNG.integers(0, 256, (32, 32, 3, 30), dtype=np.uint8)
    table = {}
    for split, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": pixels[..., rows], "y": (np.arange(30)[rows, None] % 10) + 1})
        table[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", table)

    source = f"torchvision:SVHN@{tmp_path}"
    with pytest.raises(DataError, match="does not declare its classes"):
        load_source(DataSettings(source=source))
    data = load_source(DataSettings(source=source, classes=10))
    assert data.labels.tolist() == [(index + 1) % 10 for index in range(30)]
    assert np.array_equal(data.inputs, pixels.transpose(3, 2, 0, 1))


def test_a_set_of_image_files_is_read_lazily_and_resized(tmp_path: Path) -> None:
    """Country211's own layout: one folder per part and class, images of any size."""
    for part in ("train", "valid", "test"):
        for value, name in enumerate(("AD", "AE")):
            for number in range(3):
                picture(tmp_path / "country211" / part / name / f"{number}.png", 100 * value, (6 + number, 7))
    source = f"torchvision:Country211@{tmp_path}"
    with pytest.raises(DataError, match=r"set data\.shape"):
        load_source(DataSettings(source=source))
    data = load_source(DataSettings(source=source, shape=(3, 8, 8)))
    assert (data.inputs[:, 0, 4, 4] == 100 * data.labels).all()
    assert data.class_names == ("AD", "AE")
    assert data.official_test is not None
    assert len(data.official_test) == 6


def test_a_set_that_is_neither_there_nor_downloadable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    from torchvision.datasets import mnist

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(mnist, "download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"cannot be downloaded.*torchvision:MNIST@ROOT"):
        load_source(DataSettings(source=f"torchvision:MNIST@{tmp_path}"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR11", "got 'CIFAR11'; did you mean 'CIFAR10"),
        ("FakeData", "a training and a test part"),
        ("EMNIST", "no further arguments"),
        ("CocoDetection", "a training and a test part"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_source(DataSettings(source=f"torchvision:{name}@{tmp_path}"))


@pytest.mark.parametrize("broken", ["unlike", "ragged", "words", "few"])
def test_a_set_whose_parts_do_not_agree_is_refused(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    from torchvision import datasets

    class Pets:
        def __init__(self, root: str, train: bool = True) -> None:
            self.classes = ["cat", "dog"] if train or broken != "unlike" else ["dog", "cat"]
            self.targets = {"ragged": [0, [1, 2]], "words": ["cat", "dog"], "few": [0]}.get(broken, [0, 1])

        def __len__(self) -> int:
            return 2

    monkeypatch.setattr(datasets, "Pets", Pets, raising=False)
    expected = {
        "unlike": "the same classes, in the same order, in both parts",
        "ragged": "one label an example",
        "words": "give the index of each",
        "few": "got 2 and 4",
    }
    with pytest.raises(DataError, match=expected[broken]):
        load_source(DataSettings(source="torchvision:Pets"))


def test_a_set_with_a_bomb_or_without_pictures_is_refused(
    bomb: Bomb, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    class Bombs:
        classes, targets = ("cat", "dog"), (0, 1)

        def __init__(self, root: str, train: bool = True) -> None:
            pass

        def __len__(self) -> int:
            return 2

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return object(), row

    monkeypatch.setattr(datasets, "Bombs", Bombs, raising=False)
    with pytest.raises(DataError, match="the image in row 0 of the training part of torchvision:Bombs"):
        load_source(DataSettings(source="torchvision:Bombs"))
    monkeypatch.setattr(
        Bombs, "__getitem__", lambda self, row: (Image.open(io.BytesIO(bomb(11_000, 11_000))), row)
    )
    with pytest.raises(DataError, match="pixels"):
        load_source(DataSettings(source="torchvision:Bombs"))


def test_a_damaged_set_is_an_error_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Damaged:
        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            raise pickle.UnpicklingError("invalid load key")

    monkeypatch.setattr(datasets, "Damaged", Damaged, raising=False)
    with pytest.raises(DataError, match="invalid load key"):
        load_source(DataSettings(source=f"torchvision:Damaged@{tmp_path}"))
