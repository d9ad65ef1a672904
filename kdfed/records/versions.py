"""The versions of what computes a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version

from kdfed.named import files_of


def versions(names: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of what computes a run.

    Parameters
    ----------
    names
        Every ``package.module:name`` of a user's that the run names: its version is a hash of its files.
    """
    packages = {package: version(package) for package in ("kdfed", "torch", "numpy", "flwr")}
    return packages | {name: _hash_of(name) for name in names}


def _hash_of(name: str) -> str:
    sha256 = hashlib.sha256()
    for file in files_of(name):
        sha256.update(file.read_bytes())
    return sha256.hexdigest()[:16]
