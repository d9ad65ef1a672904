from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from kdfed.errors import RunFolderError
from kdfed.records.lock import FolderLock

HOLDER = """
import sys, time
from pathlib import Path
from kdfed.records.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_holder_is_told_who_holds_it_and_a_dead_one_does_not_block(tmp_path):
    path = tmp_path / ".kdfed" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            RunFolderError, match=f"{tmp_path} is being written to by process {holder.pid} on "
        ):
            FolderLock(path).take()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    FolderLock(path).take()


def test_a_lock_is_taken_once_and_let_go(tmp_path):
    path = tmp_path / "run" / "lock"
    first, second = FolderLock(path), FolderLock(path)
    first.take()
    first.take()
    with pytest.raises(RunFolderError, match=f"process {os.getpid()} on"):
        second.take()
    first.release()
    first.release()
    assert path.read_bytes() == b""
    second.take()
    second.release(remove=True)
    assert not path.exists()


def test_a_lock_that_is_dropped_lets_go(tmp_path):
    FolderLock(tmp_path / "lock").take()
    FolderLock(tmp_path / "lock").take()
