from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdfed.data import load_source
from kdfed.errors import DataError
from kdfed.settings import DataSettings

Bomb = Callable[[int, int], bytes]
RNG = np.random.default_rng(0)


def picture(path: Path, value: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


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


def refusal(root: Path, *classes: str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_source(DataSettings(source=f"folder:{root}", classes=classes, **settings))
    return str(caught.value)


@pytest.mark.parametrize("size", [20_000, 11_000, 9_000], ids=["error of PIL", "warning of PIL", "ours"])
@pytest.mark.parametrize("shape", [None, (1, 8, 8)])
def test_an_image_of_very_many_pixels_is_refused_before_it_is_decoded(
    bomb: Bomb, tmp_path: Path, size: int, shape: Any, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
def test_an_image_that_cannot_be_read_is_named_by_its_file(
    bomb: Bomb, tmp_path: Path, content: bytes | None
) -> None:
    picture(tmp_path / "cat/0.png", 1)
    (tmp_path / "cat/broken.png").write_bytes(bomb(64, 64)[:-30] if content is None else content)
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
