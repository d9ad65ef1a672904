"""Shapes and dtypes of a model's arrays, and the check before anybody's are summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch

Spec: TypeAlias = dict[str, tuple[tuple[int, ...], str]]
"""Shape and NumPy dtype by key."""


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
        One sentence naming the first array with a wrong key, shape, dtype or a value that is not finite;
        None when all is well.
    """
    if set(arrays) != set(spec):
        missing, unknown = sorted(set(spec) - set(arrays)), sorted(set(arrays) - set(spec))
        return f"wrong arrays: missing {missing}, unexpected {unknown}"
    for key, (shape, dtype) in spec.items():
        array = arrays[key]
        if tuple(array.shape) != shape:
            return f"wrong shape of {key}: expected {shape}, got {tuple(array.shape)}"
        if _dtype(array) != dtype:
            return f"wrong dtype of {key}: expected {dtype}, got {_dtype(array)}"
        finite = torch.isfinite(array) if isinstance(array, torch.Tensor) else np.isfinite(array)
        if not bool(finite.all()):
            return f"not finite: {key}"
    return None


def _dtype(array: np.ndarray | torch.Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")
