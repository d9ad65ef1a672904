"""Small backbones that tests name, as a user's module has them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
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


def saved(folder: Path) -> str:
    """Save other weights of :class:`Tiny` in a file; return what ``model.weights`` says of it."""
    torch.manual_seed(1)
    save_file(Tiny().state_dict(), folder / "tiny.safetensors")
    return f"file:{folder / 'tiny.safetensors'}"
