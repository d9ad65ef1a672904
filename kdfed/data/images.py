"""Pictures to arrays: decode, convert between grey and colour, resize.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from kdfed.data.checks import check_memory
from kdfed.data.dataset import Inputs, require
from kdfed.errors import DataError, one_line

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Files of a folder that count as images."""

_LARGE = 64 * 64 * 3
_GREY, _COLOUR = {"1", "L", "LA"}, {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


MAX_PIXELS = 2**26
"""Pixels of a stored image at most, 192 MiB of colour: a file of a few kB can claim any number."""


def to_array(image: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    """Convert one PIL image.

    Parameters
    ----------
    image
        A PIL image of 8 bits a channel.
    shape
        (C, H, W) to convert and resize to (bilinear), C being 1 or 3; None keeps grey as one channel,
        makes everything else RGB, and keeps the size.

    Returns
    -------
    numpy.ndarray
        uint8 [C, H, W].

    Raises
    ------
    DataError
        If the image has another kind of pixel (16 bits, floats), none, or more than :data:`MAX_PIXELS`.
    """
    _check_pixels(image)
    if image.mode not in _GREY | _COLOUR:
        raise DataError(f"expected images of 8 bits a channel, got one of PIL mode {image.mode!r}")
    grey = image.mode in _GREY if shape is None else shape[0] == 1
    wanted = "L" if grey else "RGB"
    if image.mode != wanted:
        image = image.convert(wanted)
    if shape is not None and image.size != (shape[2], shape[1]):
        image = image.resize((shape[2], shape[1]), require("PIL.Image", "edge").Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if grey else array.transpose(2, 0, 1)


def read_images(
    rows: np.ndarray,
    load: Callable[[int], Any],
    shape: tuple[int, ...] | None,
    source: str,
    where: Callable[[int], str] = "row {}".format,
) -> np.ndarray:
    """Decode the images of some rows into one array.

    Parameters
    ----------
    rows
        int64 [N], at least one.
    load
        Row to PIL image; called from several threads where images are large.
    shape
        See :func:`to_array`.
    source
        For messages.
    where
        Names a row for messages: its file, where it has one.

    Returns
    -------
    numpy.ndarray
        uint8 [N, C, H, W].

    Raises
    ------
    DataError
        If an image cannot be decoded, sizes differ and there is no ``shape``, or all of them do not fit in
        memory.
    """
    check_shape(shape)
    _refuse_features(shape, source)

    def decode(row: int) -> np.ndarray:
        try:
            return to_array(load(row), shape)
        except Exception as error:  # PIL, and whatever opens a data set's images, raise errors of many kinds
            raise DataError(
                f"cannot decode the image in {where(row)} of {source}: {one_line(error)}"
            ) from error

    def fits(size: tuple[int, ...]) -> None:
        change = "set a smaller data.shape or data.limit"
        check_memory(math.prod(size) * len(rows), f"{len(rows)} images {size}", change, "data.shape")

    if shape is not None:
        fits(shape)
    with _no_bombs():
        first = decode(int(rows[0]))
    fits(first.shape)
    images = np.empty((len(rows), *first.shape), dtype=np.uint8)

    def fill(numbers: np.ndarray) -> None:
        for number in numbers:
            image = decode(int(rows[number]))
            if image.shape != first.shape:
                raise DataError(
                    f"images of {source} differ: {where(int(rows[0]))} is {first.shape} (channels, height, "
                    f"width), {where(int(rows[number]))} is {image.shape}; set data.shape to convert them "
                    "all",
                    "data.shape",
                )
            images[number] = image

    # PIL decodes without Python's lock, but for small images the threads would only wait for one another.
    workers = min(8, os.cpu_count() or 1) if first.size > _LARGE else 1
    with _no_bombs(), ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, np.array_split(np.arange(len(rows)), 1 + len(rows) // 256)))
    return images


def opener() -> Callable[[Any], Any]:
    """Return a function that opens an image file or stream, trying the format of the last one first.

    PIL alone tries its formats in a fixed order, which takes longer than to decode a small image.
    """
    image = require("PIL.Image", "edge")
    formats: list[str] = []

    def load(file: Any) -> Any:
        try:
            opened = image.open(file, formats=formats)
        except image.UnidentifiedImageError:
            opened = image.open(file)
            formats[:] = [opened.format]
        with opened:
            _check_pixels(opened)  # nothing is decoded before
            opened.load()
        return opened

    return load


@contextmanager
def _no_bombs() -> Iterator[None]:
    """Turn PIL's warning of very many pixels, which some data sets' own readers meet, into its error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", require("PIL.Image", "edge").DecompressionBombWarning)
        yield


def _check_pixels(image: Any) -> None:
    width, height = image.size
    if not 1 <= width * height <= MAX_PIXELS:
        raise DataError(f"expected an image of 1 to {MAX_PIXELS} pixels, got {width} x {height}")


def convert_images(inputs: Inputs, shape: tuple[int, ...] | None, source: str) -> Inputs:
    """Convert and resize uint8 [N, C, H, W]; the same object when it has the shape already."""
    if shape is None or inputs.shape[1:] == tuple(shape):
        return inputs
    _refuse_features(shape, source)
    image = require("PIL.Image", "edge")
    if inputs.shape[1] not in (1, 3):
        raise DataError(
            f"expected images of 1 or 3 channels to convert to data.shape, got {inputs.shape[1]}",
            "data.shape",
        )

    def load(row: int) -> Any:
        pixels = inputs[row]
        return image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

    return read_images(np.arange(len(inputs)), load, shape, source)


def _refuse_features(shape: tuple[int, ...] | None, source: str) -> None:
    """Refuse a shape of features for images."""
    if shape is not None and len(shape) != 3:
        raise DataError(
            f"expected rows of {shape[0]} features in {source}, as data.shape says, got images: set it to "
            "[channels, height, width]",
            "data.shape",
        )


def check_shape(shape: tuple[int, ...] | None) -> None:
    """Raise DataError when images cannot be converted to that many channels."""
    if shape is not None and len(shape) == 3 and shape[0] not in (1, 3):
        raise DataError(f"expected 1 (grey) or 3 (RGB) channels to convert to, got {shape[0]}", "data.shape")
