"""Paths that people write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kdfed.errors import DataError, one_line, shown

MODEL_SUFFIXES = (".safetensors", ".pt", ".pth")
"""Of files that can hold a model."""


def user_path(text: str | Path) -> Path:
    """Return a path with ``~`` replaced by the home folder; whether something is there is not said.

    Raises
    ------
    DataError
        If it begins with ``~`` and there is no home folder: HOME is not set and the user has no entry in the
        password database, as in many containers. Also if nothing can have such a path: it is empty, too long,
        or holds what no path can.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"expected a home folder for the ~ in {str(text)[:200]!r}, and there is none: {error}; set HOME, "
            "or write the whole path (for torchvision: torchvision:NAME@PATH)"
        ) from error
    problem = None if str(text) else "it is empty"
    try:
        path.lstat()
    except ValueError as error:
        problem = one_line(error)
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno == errno.ENAMETOOLONG else problem
    if problem is not None:
        raise DataError(f"expected a path, got {shown(str(text))}: {problem}; correct it")
    return path


def models_in(folder: Path) -> list[Path]:
    """Return the files of a folder that can hold a model, in the order of their names; hidden ones are none.

    Raises
    ------
    OSError
        If the folder cannot be read.
    """
    return sorted(
        path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES and not path.name.startswith(".")
    )
