"""One writer a run folder: an advisory lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from kdfed.errors import RunFolderError


class FolderLock:
    """An exclusive hold on a folder, by ``flock`` on a file in it that says which process holds it.

    Parameters
    ----------
    path
        The file. Its folder is made when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._closer: weakref.finalize[[int], FolderLock] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file >= 0

    def take(self, patience: float = 0.0) -> None:
        """Take the lock, or say who holds it; nothing happens where it is held already.

        Parameters
        ----------
        patience
            Seconds to wait for a holder that is about to end.

        Raises
        ------
        RunFolderError
            If another process, or another object of this one, holds it.
        OSError
            If the file cannot be made.
        """
        if self.held:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + patience
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file_at(file, self.path):  # else its holder removed it in between
                    break
            except BlockingIOError as error:
                holder = _describe(os.pread(file, 4096, 0))
                os.close(file)
                if time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                raise RunFolderError(
                    f"{self.path.parent.parent} is being written to by {holder}; wait until it ends, stop "
                    "it, or choose another output folder (--out)"
                ) from error
            except OSError:
                os.close(file)
                raise
            os.close(file)
        self._file = file
        # A holder that is dropped without release() lets go all the same.
        self._closer = weakref.finalize(self, os.close, file)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_holder()).encode(), 0)

    def release(self, *, remove: bool = False) -> None:
        """Let go; with ``remove`` the file goes too."""
        if not self.held or self._closer is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk cannot keep anybody out
            os.ftruncate(self._file, 0)
        self._file = -1
        self._closer()


def _is_file_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _holder() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "program": Path(sys.argv[0]).name if sys.argv else "",  # without its words: they may hold secrets
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} ({holder['program']}), since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
