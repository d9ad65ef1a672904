"""Shapes and dtypes of a model's arrays, and the check before anybody's are summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch

Spec: TypeAlias = dict[str, tuple[tuple[int, ...], str]]
"""Shape and NumPy dtype by key."""

_MOST_NAMED = 5


def spec_of(arrays: Mapping[str, np.ndarray | torch.Tensor]) -> Spec:
    """Return shape and dtype of every array."""
    return {key: (tuple(array.shape), _dtype(array)) for key, array in arrays.items()}


def problem_with_arrays(arrays: Mapping[str, np.ndarray | torch.Tensor], spec: Spec) -> str | None:
    """Say what is wrong with arrays.

    Parameters
    ----------
    arrays
        What arrived.
    spec
        The shapes and dtypes that were expected.

    Returns
    -------
    str or None
        One sentence naming the first arrays with a wrong key, or the first with a wrong shape, dtype or a
        value that is not finite; None when all is well.
    """
    if set(arrays) != set(spec):
        missing, unknown = sorted(set(spec) - set(arrays)), sorted(set(arrays) - set(spec))
        return f"wrong arrays: missing {_few(missing)}, unexpected {_few(unknown)}"
    for key, (shape, dtype) in spec.items():
        array = arrays[key]
        if tuple(array.shape) != shape:
            others = sum(tuple(arrays[one].shape) != spec[one][0] for one in spec) - 1
            more = f" (and {others} other wrong shapes)" if others else ""
            return f"wrong shape of {key}: expected {shape}, got {tuple(array.shape)}{more}"
        if _dtype(array) != dtype:
            return f"wrong dtype of {key}: expected {dtype}, got {_dtype(array)}"
        finite = torch.isfinite(array) if isinstance(array, torch.Tensor) else np.isfinite(array)
        if not bool(finite.all()):
            return f"not finite: {key}"
    return None


def _few(keys: list[str]) -> str:
    more = len(keys) - _MOST_NAMED
    return f"{keys[:_MOST_NAMED]}{f' and {more} more' if more > 0 else ''}"


def _dtype(array: np.ndarray | torch.Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")
