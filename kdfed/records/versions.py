"""The versions of what computes a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from kdfed.named import files_of
from kdfed.paths import models_in, user_path


def versions(names: Iterable[str] = (), models: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of what computes a run.

    Parameters
    ----------
    names
        Every ``package.module:name`` of a user's that the run names: its version is a hash of its files.
    models
        Every file, or folder of files, of models that the run reads: see :func:`models_sha256`.
    """
    packages = {package: version(package) for package in ("kdfed", "torch", "numpy", "flwr")}
    named = {name: _hash_of(name) for name in names}
    return packages | named | {path: models_sha256(path) for path in models}


def models_sha256(path: str) -> str:
    """Return the SHA-256 of a file, or of a folder's models with their names, as hexadecimal digits.

    Empty where nothing is there that can be read: whoever needs it says so.
    """
    where = user_path(path)
    try:
        if not where.is_dir():
            return _file_sha256(where)
        lines = [f"{_file_sha256(file)} {file.name}\n" for file in models_in(where)]
    except OSError:
        return ""
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(name: str) -> str:
    sha256 = hashlib.sha256()
    for file in files_of(name):
        sha256.update(file.read_bytes())
    return sha256.hexdigest()[:16]
