"""Small backbones that tests name, as a user's module has them."""

from __future__ import annotations

import torch
from torch import nn

TINY = "tests.small_backbones:Tiny"
OTHER = "tests.small_backbones:Other"


class Tiny(nn.Module):
    """Two stages: images of 8 pixels to 12 features."""

    input_size = 8

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        one = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        two = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
        self.stages = nn.Sequential(one, two)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.stages(inputs)
        return features


def Other() -> nn.Module:
    """Return another backbone, of one stage: to 16 features."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
    module.input_size = 8  # type: ignore[assignment]
    return module
