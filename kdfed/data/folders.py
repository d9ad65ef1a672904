"""Folders that people keep data in: what counts as theirs, and what their computer put there."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from kdfed.errors import DataError, one_line
from kdfed.paths import user_path

_NOT_THEIRS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder was put there by a program: checkpoints, thumbnails, resource forks."""
    return name.startswith(".") or name in _NOT_THEIRS


def existing(path: str | Path) -> Path:
    """Return a path with its ``~`` resolved, whether or not there is something.

    Raises
    ------
    DataError
        If it cannot be looked at.
    """
    try:
        found = user_path(path)
        found.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot look at {one_line(path)}: {one_line(error)}") from error
    return found


def visible_files(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files with one of the suffixes below a folder, sorted.

    Hidden files and folders are left out, and links are followed.

    Raises
    ------
    DataError
        If a folder cannot be read, is reached twice (its files would count twice), or something with such a
        name is no file.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; permit it, or move it away"
        ) from error

    files: list[Path] = []
    reached: dict[tuple[int, int], Path] = {}
    for name, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        folder = Path(name)
        status = folder.stat()
        first = reached.setdefault((status.st_dev, status.st_ino), folder)
        if first is not folder:
            raise DataError(
                f"{folder} and {first} are the same folder, so its files would be read twice: remove the link"
            )
        folders[:] = [each for each in folders if not is_hidden(each)]
        files += [
            folder / each for each in names if not is_hidden(each) and Path(each).suffix.lower() in suffixes
        ]
    for file in files:
        if not file.is_file():
            raise DataError(f"expected a file at {file}, got something else, or a link to nothing: remove it")
    return sorted(files)


def files_in(argument: str, suffix: str, what: str) -> tuple[Path, list[Path]]:
    """Return the path that a source names, and its files: itself, or those with a suffix below it.

    Parameters
    ----------
    argument
        What the source names.
    suffix
        Of files below a folder, ``.csv``.
    what
        One of them in words, ``a CSV file``.

    Raises
    ------
    DataError
        If there are none.
    """
    path = existing(argument)
    files = [path] if path.is_file() else visible_files(path, {suffix}) if path.is_dir() else []
    if not files:
        absent = "" if path.exists() else ", which does not exist"
        raise DataError(f"expected {what}, or a folder that holds some, got {path}{absent}")
    return path, files


def is_test_part(file: Path) -> bool:
    """Tell whether a file is named as a data set's official test part: ``test.*`` or ``test-*.*``."""
    return file.stem == "test" or file.name.startswith("test-")
