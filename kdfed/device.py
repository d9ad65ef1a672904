"""Where training runs, and how exact a GPU is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kdfed.errors import DataError


def resolve_device(name: str) -> torch.device:
    """Return the torch device that the experiment's key ``device`` names.

    Parameters
    ----------
    name
        ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or ``auto``: cuda when there is one, else cpu.

    Raises
    ------
    DataError
        If this machine has no such device; its ``key`` is ``device``.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    kind, _, index = name.partition(":")
    there = {"cpu": True, "cuda": int(index or 0) < gpus, "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        has = ["cpu", *(f"cuda:{gpu}" for gpu in range(gpus)), *(["mps"] if there["mps"] else [])]
        raise DataError(
            f"expected a device of this machine ({', '.join(has)}), got {name!r}; choose one, or auto",
            "device",
        )
    return torch.device(name)


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor on a device.

    To a GPU it goes through page-locked memory, and the copy runs beside what the host does next.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def exact_convolutions() -> None:
    """Have a GPU's convolutions keep all of float32, and give the same bits twice, from now on.

    cuDNN's own defaults round what enters a convolution to TF32, ten bits of mantissa, and may sum in any
    order. On a CPU nothing changes. :func:`convolutions_restored` takes it back.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


@contextmanager
def convolutions_restored() -> Iterator[None]:
    """Restore, on leaving, what :func:`exact_convolutions` sets."""
    cudnn: Any = torch.backends.cudnn  # typeless: its attributes depend on the release
    deterministic = cudnn.deterministic
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        tf32 = cudnn.allow_tf32
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.allow_tf32 = deterministic, tf32
        return
    # allow_tf32 cannot be read where convolutions and recurrent layers were set apart.
    precisions = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    try:
        yield
    finally:
        cudnn.deterministic = deterministic
        cudnn.allow_tf32 = "ieee" not in precisions and "none" not in precisions
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = precisions
