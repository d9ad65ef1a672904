"""The transfer set ``noise``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from kdfed.transfer_sets.transfer_set import DrawnSet


class NoiseSet(DrawnSet):
    """Independent standard normal values, after normalisation; no labels."""

    transfer: Literal["noise"] = "noise"
    """The transfer set."""

    def draw(
        self, input_shape: tuple[int, ...], count: int, teachers: Sequence[nn.Module], seed: int
    ) -> torch.Tensor:
        """Draw every value from a normal distribution with mean 0 and variance 1."""
        return torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(seed))
