from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdfed.data import load_source, prepare
from kdfed.errors import DataError
from kdfed.settings import DataSettings, SplitSettings

RNG = np.random.default_rng(0)


def picture(path: Path, value: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


# ----------------------------------------------------------------------------- folder


def test_classes_come_from_the_experiment_although_a_device_lacks_one(tmp_path: Path) -> None:
    picture(tmp_path / "dog/1.png", 10)
    picture(tmp_path / "dog/2.png", 20)
    picture(tmp_path / "owl/deep/1.png", 30)
    (tmp_path / "dog/notes.txt").write_text("no image")
    data = load_source(DataSettings(source=f"folder:{tmp_path}", classes=("owl", "cat", "dog")))
    assert data.labels.tolist() == [2, 2, 0]
    assert data.inputs[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert data.class_names == ("owl", "cat", "dog")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "set data.classes to their names in label order$"),
        (2, "expected the names of the classes"),
        (("dog",), r"holds the classes \['owl'\]"),
    ],
)
def test_a_folder_needs_the_names_of_its_classes(tmp_path: Path, classes: Any, message: str) -> None:
    picture(tmp_path / "dog/1.png", 1)
    picture(tmp_path / "owl/1.png", 1)
    with pytest.raises(DataError, match=message) as caught:
        load_source(DataSettings(source=f"folder:{tmp_path}", classes=classes))
    assert caught.value.key == "data.classes"


def test_a_folder_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder"):
        load_source(DataSettings(source=f"folder:{tmp_path / 'gone'}", classes=("a",)))
    with pytest.raises(DataError, match="expected examples"):
        load_source(DataSettings(source=f"folder:{tmp_path}", classes=("a",)))


def test_large_images_are_read_in_threads_and_keep_their_order(tmp_path: Path) -> None:
    for value in range(12):
        picture(tmp_path / f"dog/{value:02}.png", value, (100, 80))
    data = load_source(DataSettings(source=f"folder:{tmp_path}", classes=("dog",)))
    assert data.inputs.shape == (12, 3, 80, 100)
    assert data.inputs[:, 0, 0, 0].tolist() == list(range(12))


# ----------------------------------------------------------------------------- torchvision


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


# ----------------------------------------------------------------------------- what people's folders hold


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of one bit a pixel, all black, some kB for hundreds of millions of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = zlib.compress(bytes((1 + width // 8) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def refusal(root: Path, *classes: str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_source(DataSettings(source=f"folder:{root}", classes=classes, **settings))
    return str(caught.value)


@pytest.mark.parametrize("size", [20_000, 11_000, 9_000], ids=["error of PIL", "warning of PIL", "ours"])
@pytest.mark.parametrize("shape", [None, (1, 8, 8)])
def test_an_image_of_very_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, size: int, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/huge.png").write_bytes(bomb(size, size))
    message = refusal(tmp_path, "cat", shape=shape)
    assert "cat/huge.png" in message
    assert "pixels" in message


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp", "bmp"])
def test_the_pixels_of_every_format_are_counted(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdfed.data import images

    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    (tmp_path / "cat").mkdir()
    frames = [Image.new("RGB", (120, 100), (value, 0, 0)) for value in (0, 255)]
    more = {} if suffix == "bmp" else {"save_all": True, "append_images": frames[1:]}
    frames[0].save(tmp_path / f"cat/moving.{suffix}", **more)
    assert f"cat/moving.{suffix}" in refusal(tmp_path, "cat")


@pytest.mark.parametrize("content", [b"", b"no image", bomb(64, 64)[:-30]], ids=["empty", "text", "cut off"])
def test_an_image_that_cannot_be_read_is_named_by_its_file(tmp_path: Path, content: bytes) -> None:
    picture(tmp_path / "cat/0.png", 1)
    (tmp_path / "cat/broken.png").write_bytes(content)
    assert f"the image in cat/broken.png of {tmp_path}" in refusal(tmp_path, "cat")


def test_an_image_of_another_kind_of_pixel_is_named_by_its_file(tmp_path: Path) -> None:
    picture(tmp_path / "cat/0.png", 1)
    Image.new("I;16", (6, 6)).save(tmp_path / "cat/deep.png")
    message = refusal(tmp_path, "cat")
    assert "cat/deep.png" in message
    assert "8 bits a channel" in message


def test_images_of_differing_sizes_are_named_by_their_files(tmp_path: Path) -> None:
    picture(tmp_path / "cat/0.png", 1)
    picture(tmp_path / "cat/1.png", 1, (7, 6))
    assert "cat/0.png is (3, 6, 6) (channels, height, width), cat/1.png is (3, 6, 7)" in refusal(
        tmp_path, "cat"
    )


@pytest.mark.parametrize(
    "hidden",
    [
        *("cat/.ipynb_checkpoints/1-checkpoint.png", "cat/deep/.thumbs/1.png", "cat/._1.png"),
        *("cat/@eaDir/1.png", "__MACOSX/cat/1.png", "__MACOSX/._1.png", ".git/1.png", "cat/Thumbs.db"),
    ],
)
def test_hidden_files_and_folders_are_no_examples_at_any_depth(tmp_path: Path, hidden: str) -> None:
    picture(tmp_path / "cat/1.png", 10)
    picture(tmp_path / "dog/1.png", 20)
    path = tmp_path / hidden
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tmp_path / "cat/1.png").read_bytes())
    data = load_source(DataSettings(source=f"folder:{tmp_path}", classes=("cat", "dog")))
    assert data.inputs[:, 0, 0, 0].tolist() == [10, 20]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("folder", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("named", [COMPOSED, DECOMPOSED])
def test_names_are_the_same_in_any_unicode_form(tmp_path: Path, folder: str, named: str) -> None:
    picture(tmp_path / folder / "1.png", 10)
    data = load_source(DataSettings(source=f"folder:{tmp_path}", classes=("dog", named)))
    assert data.labels.tolist() == [1]
    assert data.class_names == ("dog", COMPOSED)


def test_two_folders_or_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / COMPOSED / "1.png", 10)
    assert "distinct names" in refusal(tmp_path, COMPOSED, DECOMPOSED)
    picture(tmp_path / DECOMPOSED / "1.png", 10)
    assert "the same but for their Unicode form" in refusal(tmp_path, COMPOSED)


def test_a_folder_that_links_lead_to_twice_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "data/cat/1.png", 10)
    picture(tmp_path / "elsewhere/2.png", 20)
    (tmp_path / "data/cat/more").symlink_to(tmp_path / "elsewhere")
    data = load_source(DataSettings(source=f"folder:{tmp_path / 'data'}", classes=("cat", "dog")))
    assert data.inputs[:, 0, 0, 0].tolist() == [10, 20]
    (tmp_path / "data/cat/loop").symlink_to(tmp_path / "data")
    assert "are the same folder" in refusal(tmp_path / "data", "cat", "dog")
    (tmp_path / "data/cat/loop").unlink()
    (tmp_path / "data/dog").symlink_to(tmp_path / "data/cat")
    assert "are the same folder" in refusal(tmp_path / "data", "cat", "dog")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "cat/1.png", 10)
    (tmp_path / "cat/2.png").symlink_to(tmp_path / "gone.png")
    assert f"a file at {tmp_path / 'cat/2.png'}" in refusal(tmp_path, "cat")


def test_a_folder_that_may_not_be_read_is_named_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "cat/1.png", 10)
    picture(tmp_path / "cat/locked/1.png", 10)
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"cannot read {tmp_path / 'cat/locked'}: Permission denied" in refusal(tmp_path, "cat")


def test_a_path_that_cannot_be_looked_at_is_refused_in_short() -> None:
    assert len(refusal(Path("a" * 4000), "cat")) < 1500


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
        "words": "give the place of each",
        "few": "got 2 and 4",
    }
    with pytest.raises(DataError, match=expected[broken]):
        load_source(DataSettings(source="torchvision:Pets"))


def test_a_set_with_a_bomb_or_without_pictures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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
