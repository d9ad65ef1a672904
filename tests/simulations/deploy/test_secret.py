"""Secrets are their owner's from the moment they are there."""

from __future__ import annotations

import os
import stat

import pytest

from simulations.deploy.secret import make_private_folder, whole_folder, write_open, write_secret


@pytest.fixture(params=[0o000, 0o022, 0o777])
def any_umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_whatever_the_umask_modes_are_the_same(any_umask, tmp_path):
    folder = make_private_folder(tmp_path / "folder")
    write_secret(folder / "key", b"x")
    write_open(folder / "text", "x")
    write_open(folder / "program", "x", runs=True)
    assert [mode(path) for path in (folder, *(folder / name for name in ("key", "text", "program")))] == [
        0o700, 0o600, 0o644, 0o755,
    ]  # fmt: skip


def test_a_secret_has_its_mode_before_it_has_its_content(tmp_path, monkeypatch):
    seen = []
    opened = os.open

    def watch(path, flags, mode=0o777):
        file = opened(path, flags, mode)
        seen.append((stat.S_IMODE(os.fstat(file).st_mode), os.fstat(file).st_size))
        return file

    monkeypatch.setattr(os, "open", watch)
    before = os.umask(0)
    try:
        write_secret(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert seen == [(0o600, 0)]


def test_a_secret_is_never_written_over_another_nor_through_a_link(tmp_path):
    write_secret(tmp_path / "key", b"first")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("key", "link"):
        with pytest.raises(FileExistsError):
            write_secret(tmp_path / name, b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_interrupted_folder_leaves_nothing(tmp_path, error):
    def work():
        with whole_folder(tmp_path / "folder") as part:
            (part / "file").touch()
            assert not (tmp_path / "folder").exists()
            raise error

    with pytest.raises(error):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_nobodys_place(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "folder"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
