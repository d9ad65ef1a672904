from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest


@pytest.fixture
def bomb() -> Callable[[int, int], bytes]:
    """Return what makes a PNG of one bit a pixel, all black, some kB for hundreds of millions of pixels."""

    def build(width: int, height: int) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return (
                struct.pack(">I", len(content))
                + kind
                + content
                + struct.pack(">I", zlib.crc32(kind + content))
            )

        pixels = zlib.compress(bytes((1 + width // 8) * height), 9)
        header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    return build
