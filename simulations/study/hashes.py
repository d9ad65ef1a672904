"""What results depend on beside their settings: the code that computes them, and the data.

Both hashes are computed once a process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from kdfed.data import prepare
from kdfed.named import files_of
from kdfed.settings import DataSettings

ROWS = 4096
"""Rows of the inputs that are hashed at once."""


JOBS = Path(__file__).with_name("jobs.py")


def code_sha256(names: Iterable[str], packages: tuple[str, ...] = ("kdfed",), job: Path = JOBS) -> str:
    """Return the SHA-256 of all code that a result depends on.

    Parameters
    ----------
    names
        What the settings name ``package.module:name``. The file is hashed in which it is found, and the one
        in which it is defined.
    packages, job
        Where the rest of the code is: top-level packages, and the file of what is run.

    Returns
    -------
    str
        64 hexadecimal digits: of the packages, of the job, and of these files.
    """
    return _code_sha256(tuple(sorted(set(names))), packages, job)


@cache
def _code_sha256(names: tuple[str, ...], packages: tuple[str, ...], job: Path) -> str:
    files: dict[str, Path] = {}
    for package in (Path(str(import_module(name).__file__)).parent for name in packages):
        files |= {file.relative_to(package.parent).as_posix(): file for file in sorted(package.rglob("*.py"))}
    files["jobs"] = job
    for name in names:
        files |= {f"{name} {number}": file for number, file in enumerate(files_of(name))}
    sha256 = hashlib.sha256()
    for name, file in files.items():
        content = file.read_bytes()
        sha256.update(f"{name}\n{len(content)}\n".encode())
        sha256.update(content)
    return sha256.hexdigest()


@cache
def data_sha256(settings: DataSettings) -> str:
    """Return the SHA-256 of what a source holds: inputs, labels, class names and its own test part.

    Raises
    ------
    DataError
        If the data cannot be read.
    """
    data = prepare(settings).dataset
    sha256 = hashlib.sha256()
    _add(sha256, data.labels)
    for start in range(0, len(data), ROWS):
        _add(sha256, data.inputs[start : start + ROWS])
    _add(sha256, np.zeros(0) if data.official_test is None else data.official_test)
    sha256.update(json.dumps([data.class_names, data.mean, data.std]).encode())
    return sha256.hexdigest()


def _add(sha256: Any, array: np.ndarray) -> None:
    sha256.update(json.dumps([str(array.dtype), array.shape]).encode())
    sha256.update(np.ascontiguousarray(array).data)
