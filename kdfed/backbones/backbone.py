"""What the registry holds: a backbone, or an origin of backbones that have names of their own.

Shape suffixes: N images, C channels, H height, W width, D features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

How = Literal["installed", "download"]
"""Where weights come from that are in no file of the user's."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, after scaling to [0, 1]."""


def same_key(key: str) -> str:
    """Return a key of a weights file as it is."""
    return key


@dataclass(frozen=True, eq=False)
class Network:
    """A backbone as it is built, before its weights are read.

    Parameters
    ----------
    module
        Maps normalised images [N, 3, H, W] to features [N, D].
    stages
        Its parts by name, in their order: run one after another they give the same features to the bit.
    size
        Height and width of the images that it was trained on, in pixels.
    mean, std
        ``(x - mean) / std`` is what it takes, one number a channel, of pixels x in [0, 1].
    renamed
        Takes a key of a weights file; returns that of ``module``'s state dict.
    """

    module: nn.Module
    stages: Mapping[str, nn.Module]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    renamed: Callable[[str], str] = same_key


@dataclass(frozen=True)
class Backbone:
    """A backbone by name.

    Parameters
    ----------
    build
        Takes the options; returns the network, in which weights mean nothing unless ``file`` gives none.
    file
        Takes how weights are come by; returns the file that holds them, or None where ``build`` has put them
        in already. Raises DataError with the key ``model.weights`` where there are none.
    problem
        Takes the options; says what is wrong with them, or with the name, without building anything.
    description
        One line for ``kdfed list``.
    """

    build: Callable[[Mapping[str, Any]], Network]
    file: Callable[[How], Path | None]
    problem: Callable[[Mapping[str, Any]], str | None]
    description: str


@dataclass(frozen=True)
class Origin:
    """Backbones whose names say where they come from: ``torchvision:resnet18``.

    Parameters
    ----------
    find
        Takes the whole name; returns its backbone, or raises KdfedError.
    description
        One line for ``kdfed list``.
    shipped
        What whole names match that stand for nobody's code but kdfed's and its dependencies'. Default: none.
    """

    find: Callable[[str], Backbone]
    description: str
    shipped: re.Pattern[str] | None = None
