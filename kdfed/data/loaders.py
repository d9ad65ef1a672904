"""Examples of a PyTorch app: whatever its data set or its DataLoader yields, as tensors.

Legend: N examples, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader

from kdfed.data.prepared import Examples
from kdfed.errors import DataError, shown
from kdfed.seeding import torch_seed

Loadable: TypeAlias = Examples | Iterable[Any]
"""Examples, a data set of ``torch`` or ``datasets``, or a DataLoader: of (input, label), or of dicts."""

_LABELS = ("label", "labels", "target", "targets", "y")
_BATCH = 256


def examples_of_loader(data: Loadable, name: str) -> Examples:
    """Return everything that a data set or a DataLoader yields, once.

    Parameters
    ----------
    data
        Items are (inputs, labels), or dicts with a label (``label``, ``labels``, ``target``, ``targets`` or
        ``y``) and one tensor of floating-point numbers. A loader that shuffles does so with a fixed seed.
    name
        What messages call it.

    Returns
    -------
    kdfed.data.Examples
        float32 [N, ...] and int64 [N], on the CPU.

    Raises
    ------
    DataError
        If it yields nothing, or something else.
    """
    if isinstance(data, Examples):
        found = data
    else:
        indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        if isinstance(data, Mapping) or not (indexed or isinstance(data, Iterable)):
            raise DataError(f"expected a data set or a DataLoader as {name}, got {shown(data)}")
        batches: Iterable[Any] = DataLoader(data, _BATCH) if indexed else data  # type: ignore[arg-type]
        with torch_seed(0):
            pairs = [_pair(batch, name) for batch in batches]
        if not pairs:
            raise DataError(f"expected examples in {name}, got none")
        found = _joined(pairs, name)
    inputs, labels = found.inputs, found.labels
    if not (isinstance(inputs, torch.Tensor) and isinstance(labels, torch.Tensor)):
        raise DataError(f"expected tensors as the inputs and labels of {name}, got {type(inputs).__name__}")
    if len(labels) == 0 or len(inputs) != len(labels):
        raise DataError(f"expected a label for each input in {name}, got {len(inputs)} and {len(labels)}")
    if not inputs.is_floating_point() or labels.is_floating_point() or labels.ndim != 1:
        raise DataError(
            f"expected inputs as floating-point numbers and a class, a whole number, for each in {name}, got "
            f"{_form(inputs)} and {_form(labels)}; give it the app's transforms"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(f"expected finite inputs in {name}, got infinity or NaN")
    return Examples(inputs.detach().cpu().float(), labels.detach().cpu().long())


def _joined(pairs: list[tuple[torch.Tensor, torch.Tensor]], name: str) -> Examples:
    """Return the examples of all batches."""
    first = pairs[0][0].shape[1:]
    for inputs, labels in pairs:
        if labels.ndim == 0 or inputs.ndim == 0:
            raise DataError(f"expected batches in {name}, got single examples; give its loader a batch_size")
        if inputs.shape[1:] != first:
            raise DataError(
                f"expected inputs of one shape in {name}, got {list(first)} and {list(inputs.shape[1:])}"
            )
    return Examples(torch.cat([inputs for inputs, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def _pair(batch: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [B, ...] and labels [B] of a batch."""
    got = type(batch).__name__
    if isinstance(batch, Mapping):
        got = f"a dict of {', '.join(f'{key}: {_form(value)}' for key, value in batch.items())}"
        labels = [batch[key] for key in _LABELS if key in batch]
        inputs = [
            value
            for key, value in batch.items()
            if key not in _LABELS and isinstance(value, torch.Tensor) and value.is_floating_point()
        ]
        if len(labels) == len(inputs) == 1 and isinstance(labels[0], torch.Tensor):
            return inputs[0], labels[0]
    elif isinstance(batch, list | tuple):
        got = f"({', '.join(_form(value) for value in batch)})"
        if len(batch) == 2 and all(isinstance(value, torch.Tensor) for value in batch):
            return batch[0], batch[1]
    raise DataError(
        f"expected batches of {name} to be (inputs, labels), or dicts with one tensor of floating-point "
        f"numbers and one of {', '.join(_LABELS)}, got {got}; or give kdfed.data.Examples(inputs, labels)"
    )


def _form(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__ if isinstance(value, list | tuple | Mapping) else shown(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
