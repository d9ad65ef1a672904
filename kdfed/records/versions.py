"""The versions of what computes a run."""

from __future__ import annotations

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Return the versions of what computes a run."""
    return {package: version(package) for package in ("kdfed", "torch", "numpy", "flwr")}
