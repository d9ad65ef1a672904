"""A temporary folder for one run, and the end of every process that was started with it.

What an engine starts must not outlive it, also where nothing can be cleaned up any more (SIGKILL, a crash).
A keeper watches from outside: a small process in a session of its own that reads a pipe whose other end only
the engine's process holds. However that process ends, the pipe ends too, and the keeper kills what carries
the folder's mark and removes the folder. This file is the keeper's script as well, so it imports little.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

MARK = "KDFED_HOME"
"""The environment variable that marks a run's processes; its value is the folder."""

MOST_CHARACTERS = (103 if sys.platform == "darwin" else 107) - 68
"""How long the folder's path may be. A socket's path has at most 107 characters (103 on macOS), and Ray
appends up to 68: ``/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store``."""

USUAL = Path("/tmp")  # noqa: S108

ROOM = 2**20
"""Bytes that a place for the folder must have room for."""

_NAME = "kdfed-"
_RANDOM = 8  # characters that mkdtemp appends


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Lend a folder; on leaving, kill every process that carries its mark, and remove it.

    Start processes with ``MARK`` set to the folder.

    Raises
    ------
    OSError
        If there is no place for it; see :func:`place`.
    """
    from simulations.signals import held

    folder = Path(tempfile.mkdtemp(prefix=_NAME, dir=place()))
    keeper: subprocess.Popen[bytes] | None = None
    try:
        keeper = _keeper(folder)
        yield folder
    finally:
        with held():
            clear(folder)
            if keeper is not None and keeper.stdin is not None:
                keeper.stdin.close()
                keeper.wait()


def place() -> Path:
    """Return where temporary folders can be: TMPDIR, or /tmp where that is too long or cannot be written to.

    Raises
    ------
    OSError
        If neither will do; its message says why.
    """
    refused = []
    for folder in dict.fromkeys([Path(os.environ.get("TMPDIR") or USUAL).absolute(), USUAL]):
        if len(os.fsencode(folder)) + 1 + len(_NAME) + _RANDOM > MOST_CHARACTERS:
            refused.append(f"{folder} is too long for the sockets in it")
            continue
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(ROOM))
        except OSError as error:
            refused.append(f"{folder}: {error.strerror or error}")
            continue
        return folder
    raise OSError(
        f"expected a temporary folder that can be written to ({'; '.join(refused)}); set TMPDIR to one whose "
        f"path has at most {MOST_CHARACTERS - 1 - len(_NAME) - _RANDOM} characters"
    )


def _keeper(folder: Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    return subprocess.Popen(  # noqa: S603
        # -P: what lies beside this file (ray.py, flower.py) must not be found as a module
        [sys.executable, "-P", str(Path(__file__).resolve()), str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def clear(folder: Path) -> None:
    """Kill every process that carries the folder's mark, and remove the folder, until there is neither."""
    import psutil

    deadline = time.monotonic() + 20
    while ((found := processes(folder)) or folder.exists()) and time.monotonic() < deadline:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if not found:
            shutil.rmtree(folder, ignore_errors=True)  # again, where somebody was still writing
        time.sleep(0.02)


def processes(folder: Path) -> list[psutil.Process]:
    """Return the processes that carry the folder's mark, and their descendants, but this one.

    Ray's workers overwrite their environment, and daemons outlive their parents: neither alone finds all of
    them.
    """
    import psutil

    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder):
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid() and _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the engine's process has left, or is gone
    clear(Path(sys.argv[1]))
