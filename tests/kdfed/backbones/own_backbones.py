"""Small backbones that tests name, as a user's module has them."""

from __future__ import annotations

import torch
from torch import nn


class Tiny(nn.Module):
    """Two stages: [N, 3, S, S] to features [N, 6]."""

    input_size = 12
    mean = (0.4, 0.5, 0.6)
    std = (0.2, 0.25, 0.5)

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.stages = {"one": self.one, "two": nn.Sequential(self.two, self.last)}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.last(self.two(self.one(inputs)))
        return features


def plain() -> nn.Module:
    """Return a backbone that says nothing about itself: one stage of images of 224 pixels."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


def forgetful() -> nn.Module:
    """Return a backbone whose BatchNorm always takes a batch's statistics."""
    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.AdaptiveAvgPool2d(2), nn.Flatten())


class Own(nn.BatchNorm2d):
    """May compute anything."""


def other() -> nn.Module:
    """Return a backbone with a layer that only looks like BatchNorm, beside one that is it."""
    return nn.Sequential(nn.BatchNorm2d(3), Own(3), nn.AdaptiveAvgPool2d(2), nn.Flatten())


class Looking(nn.Module):
    """Looks into its BatchNorm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mean = self.norm.running_mean
        assert mean is not None
        features: torch.Tensor = self.norm(inputs).mean((2, 3)) + mean
        return features


class Sharing(nn.Module):
    """Two stages with one BatchNorm layer, and a third whose layer has its scale."""

    def __init__(self) -> None:
        super().__init__()
        norm, alike = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        alike.weight = norm.weight
        ends = nn.Sequential(alike, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.stages = {"one": nn.Sequential(norm, nn.ReLU()), "two": norm, "three": ends}
        self.parts = nn.ModuleList(self.stages.values())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            inputs = part(inputs)
        return inputs


class Wrong(Tiny):
    """Its stages are not what it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = {"two": nn.Sequential(self.one, self.two, self.last, nn.Linear(6, 6))}


class Sizeless(Tiny):
    """Takes no number of pixels."""

    input_size = "large"  # type: ignore[assignment]


def images() -> nn.Module:
    """Return a module whose output is no vector of features."""
    return nn.Conv2d(3, 3, 1)


def large() -> nn.Module:
    """Return a module that takes images of 40 pixels and more."""
    return nn.Sequential(nn.Conv2d(3, 2, 40), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def nothing() -> str:
    """Return no module."""
    return "nothing"
