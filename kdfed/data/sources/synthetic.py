"""Class-conditional noise, for measuring scale where real data would only cost time.

It says nothing about accuracy on real data, and every table that shows it must call it synthetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kdfed.data.checks import check_memory
from kdfed.data.dataset import Listing, class_names
from kdfed.data.sources.source import Source
from kdfed.errors import DataError, one_line
from kdfed.seeding import derive, numpy_generator
from kdfed.settings import DataSettings

_ALL_AT_ONCE = 4096  # rows whose float noise exists at the same time ...
_VALUES_AT_ONCE = 2**25  # ... where they are no larger than this together
_ARRAYS = 5  # of one number an example: labels, and what they are shuffled and split by
_MOST_NOISE = 1e30  # float32 holds every draw


def synthetic(argument: str, settings: DataSettings) -> Listing:
    """Draw ``x = prototype[y] + noise * N(0, 1)`` with as many examples of each class as possible.

    Images have prototypes uniform in [0, 1] per pixel and are clipped to it and returned as uint8; features
    have standard normal prototypes and are returned as float32. No row is stored: see :class:`Drawn`.

    Parameters
    ----------
    argument
        ``examples=N,classes=K,shape=CxHxW`` or ``shape=F``; ``noise=S`` (default 0.3) and ``seed=I``
        (default 0) may follow.

    Raises
    ------
    DataError
        If a key is unknown, missing, or not a number in range.
    """
    examples, classes, shape, noise, seed = _parse(argument)
    size = math.prod(shape)
    check_memory(
        8 * (_ARRAYS * examples + (classes + 2) * size),
        f"the labels of {examples} examples and {classes} prototypes of {size} values",
        "lower examples, classes or shape",
        "data.source",
    )
    generator = numpy_generator(seed, "synthetic")
    is_images = len(shape) == 3
    prototypes = (
        generator.random((classes, *shape)) if is_images else generator.normal(size=(classes, *shape))
    )
    labels = np.arange(examples, dtype=np.int64)
    labels %= classes
    generator.shuffle(labels)
    names = class_names(settings, tuple(f"class {index}" for index in range(classes)))

    def read(rows: np.ndarray) -> Drawn:
        everything = len(rows) == examples
        return Drawn(None if everything else rows, labels, prototypes, noise, derive(seed, "synthetic-rows"))

    return Listing(labels, names, read, synthetic=True)


SOURCE = Source(
    "synthetic:examples=N,classes=K,shape=CxHxW|F[,noise=S][,seed=I], drawn: for scale only",
    synthetic,
    "classification",
)


class Drawn:
    """Rows that are drawn when they are asked for, and cost nothing before.

    The noise of row i is what a Philox generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1,
    2, 3") with the key of the data set draws from counter i * 2^128 on: so a row is the same in any batch.

    Parameters
    ----------
    rows
        int64 [N], which rows of the source these are; None for all.
    labels
        int64, of all rows of the source.
    prototypes
        float64 [K, C, H, W] in [0, 1], or [K, F].
    noise
        Standard deviation, 0 or larger.
    key
        The generator's key, 63 bits.
    """

    def __init__(
        self, rows: np.ndarray | None, labels: np.ndarray, prototypes: np.ndarray, noise: float, key: int
    ) -> None:
        self._rows, self._labels, self._prototypes = rows, labels, prototypes
        self._noise, self._key = noise, key
        self.shape: tuple[int, ...] = (len(labels if rows is None else rows), *prototypes.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.uint8 if self.ndim == 4 else np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return the rows at an int, a slice, or int64 [n] from 0 to N - 1, as an array would.

        Raises
        ------
        IndexError
            For any other index.
        """
        wanted = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        if isinstance(index, tuple) or wanted.dtype.kind not in "iu":
            raise IndexError(f"expected an int, a slice or an array of int64, got {index!r}")
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"expected rows from 0 to {len(self) - 1}, got {wanted.min()} to {wanted.max()}")
        rows = wanted if self._rows is None else self._rows[wanted]
        drawn = np.empty((rows.size, *self.shape[1:]), dtype=self.dtype)
        flat = rows.reshape(-1)
        step = max(1, min(_ALL_AT_ONCE, _VALUES_AT_ONCE // math.prod(self.shape[1:])))
        for start in range(0, len(flat), step):
            drawn[start : start + step] = self._draw(flat[start : start + step])
        return drawn.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Draw everything."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def _draw(self, rows: np.ndarray) -> np.ndarray:
        noise = np.empty((len(rows), *self.shape[1:]))
        philox = np.random.Philox(key=self._key)
        generator = np.random.Generator(philox)
        state: Any = philox.state
        for row, values in zip(rows, noise, strict=True):
            state["state"]["counter"] = np.array([0, 0, row, 0], dtype=np.uint64)
            philox.state = state  # a new generator takes five times as long
            generator.standard_normal(out=values)
        noise *= self._noise
        noise += self._prototypes[self._labels[rows]]
        return np.rint(noise.clip(0, 1) * 255) if self.dtype == np.uint8 else noise


def _parse(argument: str) -> tuple[int, int, tuple[int, ...], float, int]:
    values = {"noise": "0.3", "seed": "0"}
    known = ("examples", "classes", "shape", "noise", "seed")
    for part in argument.split(","):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise DataError(
                f"expected {', '.join(known)} as key=value behind 'synthetic:', got {one_line(part)!r}"
            )
        values[key] = value
    missing = [key for key in known if key not in values]
    if missing:
        raise DataError(f"'synthetic:' needs {', '.join(missing)}, got {one_line(argument)!r}")
    try:
        examples, classes, seed = (int(values[key]) for key in ("examples", "classes", "seed"))
        shape = tuple(int(size) for size in values["shape"].split("x"))
        noise = float(values["noise"])
    except ValueError as error:
        raise DataError(
            f"expected numbers behind 'synthetic:', got {one_line(argument)!r} ({error})"
        ) from error
    fits = examples >= classes >= 1 and len(shape) in (1, 3) and min(shape) >= 1 and seed >= 0
    if not (fits and 0 <= noise <= _MOST_NOISE):
        raise DataError(
            f"'synthetic:' needs examples >= classes >= 1, shape CxHxW or F, noise >= 0 (at most "
            f"{_MOST_NOISE:g}) and seed >= 0, got {one_line(argument)!r}"
        )
    return examples, classes, shape, noise, seed
