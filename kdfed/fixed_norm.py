"""BatchNorm whose statistics are given once and never change, in training either."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class FixedBatchNorm(nn.Module):
    """BatchNorm as it is in evaluation mode, with a scale and a shift that can be trained.

    Every example is normalised by the statistics that were given, so that it does not matter which others are
    in its batch, and a batch of one is like any other. The statistics are not in the state: they do not
    travel, and no average changes them.

    Parameters
    ----------
    norm
        A BatchNorm layer of torch, with statistics. Its scale and shift are taken over.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None, norm
        assert norm.running_var is not None, norm
        self.eps = norm.eps
        for name in ("weight", "bias"):
            own = getattr(norm, name)
            self.register_parameter(name, own)  # the layer's own, which others may share
        self.register_buffer("mean", norm.running_mean.clone(), persistent=False)
        self.register_buffer("variance", norm.running_var.clone(), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the layer in evaluation mode returns: [N, C, ...] of [N, C, ...]."""
        return functional.batch_norm(
            inputs, self.mean, self.variance, self.weight, self.bias, training=False, eps=self.eps
        )


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers in a module, itself included; those of its user's own, too."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def unfixable(norm: _BatchNorm) -> str:
    """Say why a layer cannot be replaced by a fixed one; nothing where it can."""
    kind = type(norm)
    if not kind.__module__.startswith("torch.nn."):
        return f"{kind.__name__} is no BatchNorm layer of torch.nn, and may compute something else"
    return "" if norm.running_mean is not None else f"a {kind.__name__} keeps no statistics"


def with_fixed_norms(stages: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return copies of a network's stages whose BatchNorm layers are fixed.

    Parameters
    ----------
    stages
        By name. Layers and weights that stand at several places, of one stage or of two, do so in the copies
        too. A layer that is :func:`unfixable` stays as it is.
    """
    copies = copy.deepcopy(dict(stages))
    fixed: dict[nn.Module, nn.Module] = {
        norm: FixedBatchNorm(norm)
        for stage in copies.values()
        for norm in batch_norms(stage)
        if not unfixable(norm)
    }
    for stage in copies.values():
        for part in list(stage.modules()):
            for name, child in list(part._modules.items()):
                if child in fixed:
                    setattr(part, name, fixed[child])
    return {name: fixed.get(stage, stage) for name, stage in copies.items()}
