"""Backbones of the user's: whatever ``package.module:name`` names.

A callable ``(**options)`` that returns a module which maps normalised images [N, 3, H, W] to features [N, D],
its weights in it. Attributes of the module that are read where it has them:

=============== ==================================================== =============================
``stages``      its parts, in their order: run one after another     one stage
                they must give the same features (``nn.Sequential``,
                or a dict or list of modules)
``input_size``  height and width of images, in pixels                224
``mean, std``   by which channels in [0, 1] are normalised           0 and 1: nothing is done
=============== ==================================================== =============================
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdfed.backbones.backbone import Backbone, How, Network, Origin
from kdfed.backbones.weights import KEY
from kdfed.errors import DataError, shown
from kdfed.named import blamed, load_named, problem_with_options

_DESCRIPTION = "your own callable (**options) -> torch.nn.Module that maps images to features"


def find(name: str) -> Backbone:
    """Return what a name stands for now.

    Raises
    ------
    NamedError
        If it stands for nothing that can be called.
    """
    load_named(name)
    return Backbone(
        partial(_build, name), partial(_file, name), partial(problem_with_options, name), _DESCRIPTION
    )


BACKBONES = Origin(find, _DESCRIPTION)


def _build(name: str, options: Mapping[str, Any]) -> Network:
    expected = f"expected {shown(name)} to return a module that maps images to features"
    with blamed(name, expected):
        module: object = load_named(name)(**options)
        if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"expected a torch.nn.Module, got {shown(module)}")
        stages = _stages(getattr(module, "stages", None) or {"body": module})
        size = getattr(module, "input_size", 224)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise TypeError(f"expected input_size as a number of pixels, got {shown(size)}")
        mean, std = (
            _channels(module, key, default) for key, default in (("mean", (0.0,) * 3), ("std", (1.0,) * 3))
        )
        if min(std) <= 0:
            raise ValueError(f"expected std above 0, got {std}")
    return Network(module, stages, size, mean, std)


def _stages(given: object) -> dict[str, nn.Module]:
    if isinstance(given, nn.Sequential | nn.ModuleList):
        stages: dict[Any, Any] = dict(given.named_children())
    elif isinstance(given, Mapping | nn.ModuleDict):
        stages = dict(given.items())
    elif isinstance(given, list | tuple):
        stages = {str(number): stage for number, stage in enumerate(given)}
    else:
        raise TypeError(f"expected stages as nn.Sequential, a dict or a list of modules, got {shown(given)}")
    for key, stage in stages.items():
        if not isinstance(stage, nn.Module) or not isinstance(key, str) or "." in key or not key:
            raise TypeError(f"expected modules by names without a dot as stages, got {shown({key: stage})}")
    return stages


def _channels(module: nn.Module, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    given = getattr(module, key, default)
    values = given.flatten().tolist() if isinstance(given, torch.Tensor) else list(given)
    if len(values) != 3:
        raise ValueError(f"expected 3 numbers as {key}, got {shown(given)}")
    return tuple(float(value) for value in values)


def _file(name: str, how: How) -> Path | None:
    if how == "download":
        raise DataError(
            f"expected weights 'installed' (what {shown(name)} returns) or 'file:PATH', got 'download'", KEY
        )
    return None
