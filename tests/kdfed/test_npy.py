"""Arrays of NumPy's file format, and headers that say something else than what follows."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from kdfed.npy import read_array


def written(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(3.5),
        np.empty((0, 4), np.float16),
        np.array([True, False]),
        np.arange(3, dtype=">i4"),
        np.array([1j], np.complex64),
    ],
)
def test_what_numpy_wrote_is_read_and_can_be_changed(array: np.ndarray) -> None:
    found = read_array(written(array))
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (written(np.arange(4))[:-1], "expected 32 bytes of int64"),
        (written(np.arange(4)) + b"\0", "expected 32 bytes of int64"),
        (written(np.array([{}], dtype=object)), "expected numbers, got object"),
        (written(np.array(["a"])), "expected numbers, got <U1"),
        (written(np.zeros(2, dtype=[("a", "i4")])), "expected numbers"),
        (b"nothing", "magic string"),
        (b"\x93NUMPY\x07\x00" + b"\0" * 20, "file format 1.0 or 2.0|magic"),
    ],
)
def test_anything_else_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_array(data)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'shape': (((",
        "'''never ends",
        "-" * 9000 + "1",
        "{[]: 1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 1: 2}",
        "if x:\n    y\n  z L",
    ],
)
def test_a_header_that_breaks_its_reader_is_refused_like_any_other(header: str) -> None:
    text = header.encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 4
    with pytest.raises(ValueError, match=r"expected the header of an array|expected sizes"):
        read_array(data)
