"""The residual network that ``resnet8`` and ``resnet18`` are sizes of.

Its norms are GroupNorm, which keeps no statistics of batches: those of participants would be mixed when
weights are averaged (Hsieh et al. 2020, arXiv 1910.00189).

References
----------
He, Zhang, Ren and Sun 2016, "Deep Residual Learning for Image Recognition", figure 2.
Wu and He 2018, "Group Normalization".
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from kdfed.inputs import SPARING
from kdfed.models.norms import normalisation


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2), with GroupNorm."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = normalisation("group", channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = normalisation("group", channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != channels:
            convolution = nn.Conv2d(before, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, normalisation("group", channels))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class ResNet(nn.Module):
    """Residual network with GroupNorm and a 3x3 stem (He et al. 2016; Wu and He 2018).

    Parameters
    ----------
    input_shape
        (channels, height, width).
    classes
        Number of logits.
    width
        Channels of the first stage; they double from stage to stage.
    stages
        Blocks of each stage.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, *, width: int, stages: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.norm = normalisation("group", width)
        blocks: list[nn.Module] = []
        before = width
        for stage, count in enumerate(stages):
            for index in range(count):
                channels = width * 2**stage
                blocks.append(_Block(before, channels, stride=2 if stage and not index else 1))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        hidden = self.blocks(functional.relu(self.norm(self.stem(inputs))))
        return self.head(hidden.mean((2, 3)))  # type: ignore[no-any-return]


SPARING.add(ResNet)
