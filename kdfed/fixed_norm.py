"""BatchNorm whose statistics are given once and never change, in training either."""

from __future__ import annotations

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
        A BatchNorm layer of torch, with statistics. It is not changed.
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
            self.register_parameter(name, None if own is None else nn.Parameter(own.detach().clone()))
        self.register_buffer("mean", norm.running_mean.clone(), persistent=False)
        self.register_buffer("variance", norm.running_var.clone(), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the layer in evaluation mode returns: [N, C, ...] of [N, C, ...]."""
        return functional.batch_norm(
            inputs, self.mean, self.variance, self.weight, self.bias, training=False, eps=self.eps
        )


def with_fixed_norms(module: nn.Module) -> tuple[nn.Module, int]:
    """Replace every BatchNorm layer in a module by a fixed one, in place.

    Returns
    -------
    module, count
        The module (a BatchNorm layer is replaced itself), and how many were replaced.

    Raises
    ------
    ValueError
        If a layer has no statistics, or is a BatchNorm of somebody's own, which may compute something else.
    """
    replaced = {
        id(part): FixedBatchNorm(_checked(part)) for part in module.modules() if isinstance(part, _BatchNorm)
    }
    for part in list(module.modules()):
        for name, child in part.named_children():
            if id(child) in replaced:
                setattr(part, name, replaced[id(child)])
    return replaced.get(id(module), module), len(replaced)


def _checked(norm: _BatchNorm) -> _BatchNorm:
    kind = type(norm)
    if not kind.__module__.startswith("torch.nn."):
        raise ValueError(f"{kind.__name__} is no BatchNorm layer of torch.nn")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"a {kind.__name__} keeps no statistics")
    return norm
