"""NumPy archives: arrays of inputs and labels in one file."""

from __future__ import annotations

import math
import zipfile
import zlib
from typing import Any

import numpy as np

from kdfed.data.checks import check_memory
from kdfed.data.dataset import Listing, check_labels, check_numbers, class_names, labels_from_names
from kdfed.data.folders import existing
from kdfed.data.sources.source import Source, reader_of
from kdfed.errors import DataError, one_line
from kdfed.npy import KINDS, read_header
from kdfed.settings import DataSettings

_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
"""What archives that are broken, encrypted, or packed in another way than NumPy's raise."""

_KEYS = ("inputs", "labels", "classes")


def npz(argument: str, settings: DataSettings) -> Listing:
    """Arrays of a file of ``numpy.savez(file, inputs=..., labels=...)``.

    ``inputs`` are uint8 images [N, channels, height, width] (or [N, height, width], grey), or numbers
    [N, features]. ``labels`` are [N]: places among the classes, or their names; in a regression numbers.
    ``classes``, names in label order, may stand beside them.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks one of them.
    """
    path = existing(argument)
    if not path.is_file():
        absent = "" if path.exists() else ", which does not exist"
        raise DataError(f"expected a file of numpy.savez, got {path}{absent}")
    arrays = _read(path)
    missing = [key for key in _KEYS[:2] if key not in arrays]
    if missing:
        raise DataError(
            f"expected the arrays 'inputs' and 'labels' in {path}, {one_line(missing)} missing; write it by "
            "numpy.savez(file, inputs=..., labels=...)"
        )
    inputs, labels = arrays["inputs"], arrays["labels"]
    if inputs.ndim == 3 and inputs.dtype == np.uint8:
        inputs = inputs[:, None]
    if inputs.ndim not in (2, 4):
        raise DataError(
            f"expected uint8 [N, C, H, W] or numbers [N, F] as inputs in {path}, got {inputs.dtype} "
            f"{inputs.shape}"
        )
    names: tuple[str, ...] = ()
    if settings.task == "regression":
        labels = check_numbers(labels, str(path))
    else:
        declared = tuple(map(str, arrays["classes"].ravel().tolist())) if "classes" in arrays else None
        are_names = labels.dtype.kind == "U"
        names = class_names(settings, declared, needs_names=are_names, strict=True)
        if are_names:
            labels = labels_from_names(labels.ravel().tolist(), names, str(path))
        labels = check_labels(labels, len(names), str(path))
    if len(labels) != len(inputs):
        raise DataError(f"expected as many labels as inputs in {path}, got {len(labels)} and {len(inputs)}")
    read = reader_of(inputs)
    if inputs.ndim == 2 and inputs.dtype.kind in "iu":  # features, in their own unit; made when they are read
        return Listing(labels, names, lambda rows: read(rows).astype(np.float32))
    return Listing(labels, names, read)


def _read(path: Any) -> dict[str, np.ndarray]:
    """Read the arrays that there are; a header that asks for more than follows it is refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            present = [key for key in _KEYS if f"{key}.npy" in sizes]
            needed = sum(sizes[f"{key}.npy"] for key in present)
            check_memory(needed, f"the arrays of {path}", "use another file, or a part of it", "data.source")
            for key in present:
                with archive.open(f"{key}.npy") as member:
                    shape, _, dtype = read_header(member, KINDS + "U")
                if math.prod(shape) * dtype.itemsize >= sizes[f"{key}.npy"]:
                    raise ValueError(f"{key}: its header asks for {shape}, more than there is")
        with np.load(path, allow_pickle=False) as found:
            return {key: found[key] for key in present}
    except _UNREADABLE as error:
        raise DataError(f"cannot read {path} as arrays of numpy.savez: {one_line(error)}") from error


SOURCE = Source("npz:PATH, arrays inputs and labels of numpy.savez", npz)
