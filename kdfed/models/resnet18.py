"""ResNet-18 (He et al. 2016, table 1) for small images: a 3x3 stem, and GroupNorm."""

from __future__ import annotations

from torch import nn

from kdfed.models.model import Model
from kdfed.models.resnet import ResNet
from kdfed.settings import PositiveInt


def resnet18(input_shape: tuple[int, ...], classes: int, *, width: PositiveInt = 64) -> nn.Module:
    """Return ResNet-18 with a 3x3 stem in place of the 7x7 one."""
    return ResNet(input_shape, classes, width=width, stages=(2, 2, 2, 2))


MODEL = Model(
    resnet18,
    "residual network with GroupNorm, 8 blocks, 3x3 stem (options: width)",
    images_only=True,
)
