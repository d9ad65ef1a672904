"""The normalisation after a convolution."""

from __future__ import annotations

from torch import nn


def normalisation(kind: str, channels: int) -> nn.Module:
    """Return what normalises [N, channels, H, W]: by ``batch``, by ``group``, or not at all."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(_groups(channels), channels)
    return nn.Identity()


def _groups(channels: int) -> int:
    """Return the largest number of groups up to 8 that divides the channels."""
    return next(groups for groups in range(8, 0, -1) if channels % groups == 0)
