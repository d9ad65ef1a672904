"""A device's data are looked at without the experiment, and nothing of theirs is run."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from kdfed.data.images import SUFFIXES
from simulations.deploy.checking.data import IMAGES, check_data


def only(data, folder):
    (finding,) = check_data(data, folder)
    return finding.level, finding.text


def test_the_same_files_count_as_images_as_in_an_experiment():
    assert IMAGES == SUFFIXES


def test_a_folder_of_classes_is_counted(tmp_path):
    for name in ("zero/a.PNG", "zero/deep/b.jpg", "one/c.png", "one/notes.txt", "one/._d.png", ".git/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "two").mkdir()
    assert only(f"folder:{tmp_path}", tmp_path) == ("fine", f"3 images of 2 classes in {tmp_path}")
    assert only("folder:.", tmp_path)[0] == "fine"


@pytest.mark.parametrize("kind", ["folder", "parquet", "csv", "npz"])
def test_what_is_not_there_is_wrong(tmp_path, kind):
    level, text = only(f"{kind}:{tmp_path}/absent", tmp_path)
    assert level == "wrong"
    assert text.startswith(f"expected {tmp_path}/absent to be readable: No such file or directory;")


def test_images_beside_each_other_have_no_class(tmp_path):
    (tmp_path / "a.png").touch()
    level, text = only(f"folder:{tmp_path}", tmp_path)
    assert level == "wrong"
    assert "in one sub-folder per class" in text


def test_files_are_recognised_by_how_they_begin(tmp_path):
    np.savez(tmp_path / "good.npz", x=np.zeros(3))
    (tmp_path / "good.parquet").write_bytes(b"PAR1....PAR1")
    (tmp_path / "good.csv").write_text("a,label\n1,0\n")
    (tmp_path / "bad").write_bytes(b"\x00\x01")
    (tmp_path / "empty").touch()
    for kind in ("npz", "parquet", "csv"):
        assert only(f"{kind}:{tmp_path}/good.{kind}", tmp_path)[0] == "fine"
        assert only(f"{kind}:{tmp_path}/empty", tmp_path)[0] == "wrong"
    for kind in ("npz", "parquet"):
        assert "got something else" in only(f"{kind}:{tmp_path}/bad", tmp_path)[1]


def test_a_folder_of_parquet_files_is_read(tmp_path):
    assert only(f"parquet:{tmp_path}", tmp_path)[0] == "wrong"
    (tmp_path / "part-0.parquet").write_bytes(b"PAR1")
    assert only(f"parquet:{tmp_path}", tmp_path)[0] == "fine"


def test_code_is_looked_for_and_not_run(tmp_path, monkeypatch):
    (tmp_path / "their_data.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert only("their_data:load", tmp_path)[0] == "fine"
    assert only("absent_data.sub:load", tmp_path)[0] == "wrong"
    assert only("what is this", tmp_path)[0] == "wrong"
    assert "their_data" not in sys.modules
