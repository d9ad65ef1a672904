"""The temporary folder of a run: nothing outlives it, and it is put where there is room for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulations.engines import home

HOLDER = """
import os, subprocess, sys, time
from simulations.engines.home import MARK, temporary_home

with temporary_home() as folder:
    subprocess.Popen(["sh", "-c", sys.argv[1]], env={**os.environ, MARK: str(folder)}, stdout=2)
    print(folder, flush=True)
    time.sleep(60)
"""

FAMILY = "sleep 300 & setsid sleep 300 & env -u KDFED_HOME sleep 300 & wait"
"""A shell, its child, a daemon, and a child that has lost the mark, as Ray's workers do."""


def until(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_process_that_is_killed_takes_its_children_and_its_folder_with_it():
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, FAMILY], stdout=subprocess.PIPE, text=True
    ) as holder:
        folder = Path(holder.stdout.readline().strip())
        try:
            assert until(lambda: len(home.processes(folder)) == 4)
            assert folder.is_dir()
            holder.kill()
            holder.wait()
            assert until(lambda: not home.processes(folder))
            assert until(lambda: not folder.exists())
        finally:
            holder.kill()
            home.clear(folder)


def test_an_interrupt_kills_what_was_started_orphans_and_daemons_included():
    def interrupted():
        with home.temporary_home() as folder:
            seen.append(folder)
            environment = {**os.environ, home.MARK: str(folder)}
            with subprocess.Popen(["sh", "-c", FAMILY], env=environment) as started:
                assert until(lambda: len(home.processes(folder)) == 4)
                started.kill()
            raise KeyboardInterrupt

    seen: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert home.processes(seen[0]) == []
    assert not seen[0].exists()


# ----------------------------------------------------------------------------- where it is


@pytest.fixture
def short(monkeypatch):
    """A folder with a short path."""
    path = Path(f"/tmp/k{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Return a function that mounts an empty file system of 64 kB."""
    mounts: list[Path] = []
    monkeypatch.setattr(home, "MOST_CHARACTERS", 1000)

    def mount(options: str) -> Path:
        path = tmp_path / f"mount{len(mounts)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size=64k,{options}", "tmpfs", str(path)], capture_output=True
        )
        if done.returncode != 0:
            pytest.skip("mounting is not permitted here")
        mounts.append(path)
        return path

    yield mount
    for path in mounts:
        subprocess.run(["umount", str(path)], check=True)


def test_tmpdir_is_used_where_its_path_is_short_enough_for_sockets(short, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(short))
    assert home.place() == short
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    assert home.place() == Path("/tmp")


def test_the_usual_place_does_where_tmpdir_is_not_there(short, monkeypatch, tmp_path):
    monkeypatch.setattr(home, "USUAL", short)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert home.place() == short


@pytest.mark.parametrize(("options", "reason"), [("ro", "Read-only file system"), ("rw", "No space left")])
def test_tmpdir_is_used_where_the_usual_place_is_read_only_or_full(
    mounted, short, monkeypatch, options, reason
):
    monkeypatch.setattr(home, "USUAL", mounted(options))
    monkeypatch.setenv("TMPDIR", str(short))
    assert home.place() == short
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(OSError, match=f"{reason}.*; set TMPDIR"):
        home.place()
