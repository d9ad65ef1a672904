"""Models leave their inputs as they are: others read them afterwards."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

SPARING: set[type[nn.Module]] = set()
"""Models that are known to leave their inputs as they are: each says so where it is defined."""


def spare_inputs(model: nn.Module) -> None:
    """See to it that a model leaves its inputs as they are.

    Others read them afterwards: participants of all arms share a validation set. So a model is given copies
    from now on, whatever it does with them (``x.mul_(2)``, ``ReLU(inplace=True)`` as its first layer): what a
    foreign model writes may depend on the values. All models of :func:`build_model` are, except kdfed's own.

    Parameters
    ----------
    model
        On any device. It may get a hook, of which its copies have one, too.
    """
    if type(model) not in SPARING and not has_copies(model):
        model.register_forward_pre_hook(_copied, prepend=True)  # before hooks that write


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, without gradient, that leaves its inputs as they are."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    spare_inputs(copied)
    return copied


def has_copies(model: nn.Module) -> bool:
    """Tell whether a model is given copies of its inputs: see :func:`spare_inputs`."""
    return _copied in model._forward_pre_hooks.values()


def _copied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in inputs)
