"""What is checked of every source, whatever it is: that its inputs fit in memory and can be learnt from.

Legend: N examples, C channels, H height, W width, F features.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from kdfed.data.dataset import Inputs
from kdfed.errors import DataError, one_line

_CHUNK = 2**22  # numbers that are looked at together
_FEW = 16  # rows that nearly always differ
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_memory() -> int | None:
    """Return the memory that this process can have, in bytes; None where the system does not tell.

    It is the machine's, or the container's where that has less.
    """
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    for file in _LIMITS:
        try:
            sizes.append(int(file.read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return min(sizes)


def check_memory(needed: int, what: str, change: str, key: str) -> None:
    """Refuse what cannot fit in memory before any of it is allocated.

    Parameters
    ----------
    needed
        Bytes, rather too few than too many.
    what
        What needs them, for the message.
    change
        What the user can change.
    key
        The key of the experiment that has to change.

    Raises
    ------
    DataError
        If this machine has less.
    """
    there = machine_memory()
    if there is not None and needed > there:
        size = f"{needed / 2**30:.1f}" if needed < 2**80 else "more than 2^50"
        raise DataError(
            f"expected data that fit in the {there / 2**30:.1f} GiB of memory of this machine, "
            f"{one_line(what, 200)} need {size} GiB: {change}",
            key,
        )


def check_inputs(inputs: Inputs, source: str, where: Callable[[int], str]) -> Inputs:
    """Check what a source has read, and return it so that nobody can change it any more.

    Rows that are drawn on demand are neither read nor checked: they are finite as they are made.

    Parameters
    ----------
    inputs
        uint8 [N, C, H, W] or floats [N, F].
    source
        For messages.
    where
        Names the row of ``inputs`` at an index.

    Returns
    -------
    Inputs
        uint8 [N, C, H, W] or float32 [N, F], read-only.

    Raises
    ------
    DataError
        If they are of another kind, hold no value, or one that is not finite in float32.
    """
    if not isinstance(inputs, np.ndarray):
        return inputs
    is_table = inputs.ndim == 2 and inputs.dtype.kind == "f"
    if not is_table and (inputs.ndim != 4 or inputs.dtype != np.uint8):
        raise DataError(
            f"expected uint8 [N, C, H, W] or floats [N, F] from {source}, got {inputs.dtype} {inputs.shape}"
        )
    if 0 in inputs.shape:
        raise DataError(f"expected inputs of at least one value from {source}, got the shape {inputs.shape}")
    with np.errstate(over="ignore"):
        made = inputs.astype(np.float32, copy=False) if is_table else inputs
    for start, chunk in _chunks(made) if is_table else ():
        broken = np.argwhere(~np.isfinite(chunk))
        if len(broken):
            row, feature = start + int(broken[0, 0]), int(broken[0, 1])
            raise DataError(
                f"expected inputs that are finite in float32 from {source}, got {inputs[row, feature]} as "
                f"feature {feature} of {where(row)}: fill or drop such rows"
            )
    return _own(made)


def check_normalised(
    inputs: Inputs, apply: Callable[[np.ndarray], torch.Tensor], source: str, key: str
) -> None:
    """Refuse inputs that normalisation makes infinite, or all the same.

    Parameters
    ----------
    inputs
        uint8 [N, C, H, W] or float32 [N, F], finite.
    apply
        Normalises them; it keeps their order within a channel or feature.
    source
        For messages.
    key
        What has to change.

    Raises
    ------
    DataError
        If an input overflows float32, or all N are equal: nothing can be learnt from them.
    """
    check_finite(inputs, apply, source, key)
    first = apply(inputs[:1])
    few = iter([(0, inputs[:_FEW])])  # seldom more are needed, and rows may be drawn as they are asked for
    for _, chunk in itertools.chain(few, _chunks(inputs)):
        if not torch.equal(apply(chunk), first.expand(chunk.shape)):
            return
    raise DataError(
        f"expected inputs that differ, all {len(inputs)} of {source} are equal after normalisation, so "
        "nothing can be learnt from them: correct the data or data.normalise",
        key,
    )


def check_finite(inputs: Inputs, apply: Callable[[np.ndarray], torch.Tensor], source: str, key: str) -> None:
    """Refuse inputs that normalisation makes infinite: as :func:`check_normalised`.

    Raises
    ------
    DataError
        If there is one.
    """
    shape = inputs.shape[1:]
    if len(shape) == 3:  # pixels are checked by their range
        ends = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1).repeat(shape[0], axis=1)
    elif isinstance(inputs, np.ndarray):
        ends = np.stack([inputs.min(axis=0), inputs.max(axis=0)])
    else:
        ends = inputs[:1]
    broken = np.argwhere(~np.isfinite(apply(ends).numpy()))
    if len(broken):
        end, column = broken[0, :2]
        value = ends[end, column].item()
        row = "" if len(shape) == 3 else f" in row {int((inputs[:, column] == value).argmax())}"
        raise DataError(
            f"expected inputs that are finite in float32 after normalisation, {value:g} of "
            f"{'channel' if len(shape) == 3 else 'feature'} {column} of {source}{row} is not: correct "
            "it or set data.normalise",
            key,
        )


def _chunks(inputs: Inputs) -> Iterator[tuple[int, np.ndarray]]:
    """Yield consecutive rows, and where they start."""
    rows = max(1, _CHUNK // int(np.prod(inputs.shape[1:])))
    for start in range(0, len(inputs), rows):
        yield start, inputs[start : start + rows]


def _own(array: np.ndarray) -> np.ndarray:
    """Return an array read-only: a copy where it is a view of something that somebody else can write to."""
    owner = array.base
    while isinstance(owner, np.ndarray) and not owner.flags.writeable:
        owner = owner.base
    if isinstance(owner, np.ndarray):
        array = array.copy()
    array.flags.writeable = False
    return array
