"""NumPy's file format, read so that no header makes anybody allocate what is not there.

``numpy.load`` allocates what a header asks for before it looks for the numbers: sixty bytes can ask for a
terabyte. Here the header is read first, and must be of exactly the bytes that follow it.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import IO

import numpy as np
from numpy.lib import format as npy

from kdfed.errors import one_line

_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

KINDS = "biufc"
"""Booleans, whole numbers, floats and complex numbers: no object, of which only a pickle could hold any."""


def read_header(file: IO[bytes], kinds: str = KINDS) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array, up to its first number.

    Parameters
    ----------
    kinds
        Which kinds of numbers it may have, as in ``numpy.dtype.kind``.

    Returns
    -------
    tuple
        Shape, whether it is in Fortran's order, and dtype.

    Raises
    ------
    ValueError
        If there is no such header, or its numbers are of another kind.
    """
    version = npy.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"expected NumPy's file format 1.0 or 2.0, got {version}")
    try:
        shape, fortran, dtype = _READERS[version](file)
    except Exception as error:  # NumPy reads a header as Python's: TypeError, TokenError, MemoryError...
        raise ValueError(f"expected the header of an array, got {one_line(repr(error), 80)}") from error
    if dtype.kind not in kinds or dtype.hasobject:
        raise ValueError(f"expected numbers, got {str(dtype)[:40]}")
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise ValueError(f"expected sizes of at least 0, got {str(shape)[:80]}")
    return shape, fortran, dtype


def read_array(data: bytes, kinds: str = KINDS) -> np.ndarray:
    """Read an array of NumPy's file format; what it takes in memory is what it takes here.

    Raises
    ------
    ValueError
        If its header says anything else than the bytes that follow it.
    """
    file = BytesIO(data)
    shape, fortran, dtype = read_header(file, kinds)
    there, needed = len(data) - file.tell(), math.prod(shape) * dtype.itemsize
    if needed != there:
        raise ValueError(f"expected {needed} bytes of {dtype} {str(shape)[:80]}, got {there}")
    array = np.frombuffer(data, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if fortran else "C").copy()
