"""The classifiers of torchvision, without pre-trained weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from kdfed.errors import shortened, shown
from kdfed.models.model import Model, Origin, near

_PREFIX = "torchvision:"
_DESCRIPTION = "any torchvision classifier without pre-trained weights, e.g. torchvision:resnet18"


@lru_cache(maxsize=64)
def find(name: str) -> Model:
    """Return the classifier of a name, whether or not torchvision has it."""
    build = partial(_classifier, name.removeprefix(_PREFIX))
    return Model(build, _DESCRIPTION, images_only=True, problem=partial(_problem, name))


MODELS = Origin(find, _DESCRIPTION, shipped=re.compile(r"torchvision:[A-Za-z0-9_]+"))


def _classifier(name: str, input_shape: tuple[int, ...], classes: int, /, **options: Any) -> nn.Module:
    """Build a torchvision classifier, and let its first convolution take the channels of the data."""
    from torchvision.models import get_model

    channels = input_shape[0]
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their training output is a tuple with auxiliary logits
        extra = {"aux_logits": False, "init_weights": True}
    model: nn.Module = get_model(name, weights=None, num_classes=classes, **{**options, **extra})
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != channels:
        first.in_channels = channels
        first.weight = nn.Parameter(torch.empty(first.out_channels, channels, *first.kernel_size))
        first.reset_parameters()
    return model


def _problem(name: str, options: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a name or with options."""
    try:
        from torchvision import models
    except ImportError:
        return f"{name!r} needs torchvision; install kdfed[sim]"
    known = models.list_models(module=models)
    short = name.removeprefix(_PREFIX)
    if short not in known:
        return f"torchvision has no classifier {shown(short)}{near(short, known)}"
    for option in ("num_classes", "weights", "aux_logits"):
        if option in options:
            return f"{name!r}: option {option!r} is set by kdfed; remove it"
    try:
        with torch.device("meta"):  # no memory, no drawing of weights
            _classifier(short, (3, 224, 224), 2, **options)
    except NotImplementedError:  # it reads its own numbers (regnet): whoever builds it says what is wrong
        return None
    except Exception as error:
        return f"{name!r} does not take the options {shown(dict(options))}: {shortened(str(error))}"
    return None
