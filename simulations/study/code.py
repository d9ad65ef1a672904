"""What results depend on beside the study's settings: the code that computes them, and the data.

Both digests are computed once a process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import kdfed
from kdfed.data import prepare
from kdfed.named import files_of
from kdfed.settings import DataSettings

ROWS = 4096
"""Rows of the inputs that are hashed at once."""


def code_digest(names: Iterable[str]) -> str:
    """Return the SHA-256 of all code that a result depends on.

    Parameters
    ----------
    names
        What the study names ``package.module:name``. The file is hashed in which it is found, and the one in
        which it is defined.

    Returns
    -------
    str
        64 hexadecimal digits: of the package kdfed, of :mod:`simulations.study.work`, and of these files.
    """
    return _code_digest(tuple(sorted(set(names))))


@cache
def _code_digest(names: tuple[str, ...]) -> str:
    package = Path(kdfed.__file__).parent
    files = {file.relative_to(package.parent).as_posix(): file for file in sorted(package.rglob("*.py"))}
    files["work"] = Path(__file__).with_name("work.py")
    for name in names:
        files |= {f"{name} {place}": file for place, file in enumerate(files_of(name))}
    digest = hashlib.sha256()
    for name, file in files.items():
        content = file.read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@cache
def data_digest(settings: DataSettings) -> str:
    """Return the SHA-256 of what a source holds: inputs, labels, class names and its own test part.

    Raises
    ------
    DataError
        If the data cannot be read.
    """
    data = prepare(settings).dataset
    digest = hashlib.sha256()
    _add(digest, data.labels)
    for start in range(0, len(data), ROWS):
        _add(digest, data.inputs[start : start + ROWS])
    _add(digest, np.zeros(0) if data.official_test is None else data.official_test)
    digest.update(json.dumps([data.class_names, data.mean, data.std]).encode())
    return digest.hexdigest()


def _add(digest: Any, array: np.ndarray) -> None:
    digest.update(json.dumps([str(array.dtype), array.shape]).encode())
    digest.update(np.ascontiguousarray(array).data)
