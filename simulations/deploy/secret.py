"""Files and folders that nobody but their owner can read, from the moment they are there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

OWNER_ONLY = 0o077
"""The bits that a secret must not have."""


def make_private_folder(path: Path) -> Path:
    """Make a folder with mode 0700; it must not be there. Return it."""
    path.mkdir(mode=0o700)
    path.chmod(0o700)  # the umask may have taken the owner's own bits
    return path


def write_secret(path: Path, content: bytes) -> None:
    """Write a file with mode 0600; it must not be there, and is never readable to others."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(content)


def write_open(path: Path, text: str, *, runs: bool = False) -> None:
    """Write a text that is no secret; with ``runs`` it is a program."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755 if runs else 0o644)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a private folder under another name, which becomes ``path`` at the end of the block.

    Nobody ever sees half of it: whatever interrupts the block, Ctrl-C included, removes it.

    Raises
    ------
    OSError
        If something is there already.
    """
    part = make_private_folder(path.with_name(f".{path.name[:200]}.{uuid4().hex}.part"))
    try:
        yield part
        if os.path.lexists(path):  # a rename would replace an empty folder
            raise FileExistsError(f"{path} exists already")
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
