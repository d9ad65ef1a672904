"""Arrays of NumPy's file format 1.0 whose headers say whatever a test likes."""

from __future__ import annotations


def npy(shape: tuple[int, ...], dtype: str, numbers: bytes = b"") -> bytes:
    """Return a header that asks for this shape and dtype, and what follows it."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + numbers
