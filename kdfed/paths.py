"""Paths that people write."""

from __future__ import annotations

from pathlib import Path

from kdfed.errors import DataError


def user_path(text: str | Path) -> Path:
    """Return a path with ``~`` replaced by the home folder.

    Raises
    ------
    DataError
        If it begins with ``~`` and there is no home folder: HOME is not set and the user has no entry in the
        password database, as in many containers.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"expected a home folder for the ~ in {str(text)[:200]!r}, and there is none: {error}; set HOME, "
            "or write the whole path (for torchvision: torchvision:NAME@PATH)"
        ) from error
