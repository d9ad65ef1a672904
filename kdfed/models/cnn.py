"""A small convolutional network, for small images.

Without normalisation by default: BatchNorm mixes the participants' statistics when weights are averaged
(Hsieh et al. 2020, "The Non-IID Data Quagmire of Decentralized Machine Learning", arXiv 1910.00189).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from kdfed.inputs import SPARING
from kdfed.models.model import Model
from kdfed.models.norms import normalisation
from kdfed.settings import PositiveInt


class CNN(nn.Module):
    """Convolution 5x5, pool, convolution 3x3, pool, linear.

    Parameters
    ----------
    input_shape
        (channels, height, width).
    classes
        Number of logits.
    width
        Channels of the first convolution; the second has twice as many.
    norm
        Normalisation after each convolution.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        width: PositiveInt = 8,
        norm: Literal["none", "group", "batch"] = "none",
    ) -> None:
        super().__init__()
        channels, height, wide = input_shape
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.norm1 = normalisation(norm, width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm2 = normalisation(norm, 2 * width)
        self.head = nn.Linear(2 * width * (height // 4) * (wide // 4), classes)
        self.to(memory_format=torch.channels_last)  # the layout in memory: steps take half the time on CPUs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        # Pool before ReLU: the same as after it, on a quarter of the values.
        hidden = functional.relu(functional.max_pool2d(self.norm1(self.conv1(inputs)), 2))
        hidden = functional.relu(functional.max_pool2d(self.norm2(self.conv2(hidden)), 2))
        return self.head(hidden.flatten(1))  # type: ignore[no-any-return]


SPARING.add(CNN)

MODEL = Model(
    CNN,
    "two convolutions and a linear layer, for small images (options: width, norm)",
    images_only=True,
)
