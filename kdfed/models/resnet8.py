"""The smallest residual network for images of about 32 pixels: He et al. 2016, section 4.2, n = 1."""

from __future__ import annotations

from torch import nn

from kdfed.models.model import Model
from kdfed.models.resnet import ResNet
from kdfed.settings import PositiveInt


def resnet8(input_shape: tuple[int, ...], classes: int, *, width: PositiveInt = 16) -> nn.Module:
    """Return the ResNet of 6n + 2 layers with n = 1 (He et al. 2016, section 4.2)."""
    return ResNet(input_shape, classes, width=width, stages=(1, 1, 1))


MODEL = Model(
    resnet8,
    "residual network with GroupNorm, 3 blocks, for images of about 32 pixels (options: width)",
    images_only=True,
)
