"""Class-conditional noise, for measuring scale where real data would only cost time.

It says nothing about accuracy on real data, and every table that shows it must call it synthetic.
"""

from __future__ import annotations

import numpy as np

from kdfed.config import DataSettings
from kdfed.data.dataset import Listing, class_names
from kdfed.errors import DataError
from kdfed.seeding import numpy_generator

_BLOCK = 4096  # rows drawn at a time, so that float noise never exists for all examples at once


def synthetic(argument: str, settings: DataSettings) -> Listing:
    """Draw ``x = prototype[y] + noise * N(0, 1)`` with as many examples of each class as possible.

    Images have prototypes uniform in [0, 1] per pixel and are clipped and stored as uint8; features have
    standard normal prototypes and are stored as float32.

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
    generator = numpy_generator(seed, "synthetic")
    is_images = len(shape) == 3
    prototypes = (
        generator.random((classes, *shape)) if is_images else generator.normal(size=(classes, *shape))
    )
    labels = generator.permutation(np.arange(examples, dtype=np.int64) % classes)
    inputs = np.empty((examples, *shape), dtype=np.uint8 if is_images else np.float32)
    for start in range(0, examples, _BLOCK):
        block = prototypes[labels[start : start + _BLOCK]]
        block += noise * generator.standard_normal(block.shape)
        inputs[start : start + _BLOCK] = np.rint(block.clip(0, 1) * 255) if is_images else block
    names = class_names(settings, tuple(f"class {index}" for index in range(classes)))
    return Listing(labels, names, lambda rows: inputs[rows], synthetic=True)


def _parse(argument: str) -> tuple[int, int, tuple[int, ...], float, int]:
    values = {"noise": "0.3", "seed": "0"}
    known = ("examples", "classes", "shape", "noise", "seed")
    for part in argument.split(","):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise DataError(f"expected {', '.join(known)} as key=value behind 'synthetic:', got {part!r}")
        values[key] = value
    missing = [key for key in known if key not in values]
    if missing:
        raise DataError(f"'synthetic:' needs {', '.join(missing)}, got {argument!r}")
    try:
        examples, classes, seed = (int(values[key]) for key in ("examples", "classes", "seed"))
        shape = tuple(int(size) for size in values["shape"].split("x"))
        noise = float(values["noise"])
    except ValueError as error:
        raise DataError(f"expected numbers behind 'synthetic:', got {argument!r} ({error})") from error
    fits = examples >= classes >= 1 and len(shape) in (1, 3) and min(shape) >= 1 and seed >= 0
    if not (fits and 0 <= noise < np.inf):
        raise DataError(
            f"'synthetic:' needs examples >= classes >= 1, shape CxHxW or F, noise >= 0 and seed >= 0, got "
            f"{argument!r}"
        )
    return examples, classes, shape, noise, seed
