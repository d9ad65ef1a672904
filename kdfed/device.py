"""Where training runs."""

from __future__ import annotations

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
