"""A received and a personal model side by side, as one model that a cohort can train.

The pair's logits are those of both, the received model's first, so that one loss on them trains both
(:mod:`kdfed.local.mutual`). :func:`pair_state` makes a pair's state from those of its two models, and
:func:`split_pair` takes it apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from kdfed.models import SPARING, State, spare_inputs

RECEIVED, PERSONAL = "received", "personal"


class ModelPair(nn.Module):
    """Two models that read the same inputs.

    Parameters
    ----------
    received
        The federated model.
    personal
        The participant's own, of any architecture with the same inputs and classes. They must share no
        parameter.
    """

    def __init__(self, received: nn.Module, personal: nn.Module) -> None:
        super().__init__()
        for model in (received, personal):
            spare_inputs(model)
        self.received, self.personal = received, personal

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [N, 2C] of inputs [N, ...]."""
        return torch.cat([self.received(inputs), self.personal(inputs)], dim=1)


SPARING.add(ModelPair)


def pair_state(received: Mapping[str, torch.Tensor], personal: Mapping[str, torch.Tensor]) -> State:
    """Return the state of a pair; its tensors are those of the two models."""
    return {
        f"{name}.{key}": value
        for name, state in ((RECEIVED, received), (PERSONAL, personal))
        for key, value in state.items()
    }


def split_pair(pair: Mapping[str, torch.Tensor]) -> tuple[State, State]:
    """Return the states of the received and the personal model of a pair's state, or of a stack of such."""
    received, personal = (
        {key.removeprefix(f"{name}."): value for key, value in pair.items() if key.startswith(f"{name}.")}
        for name in (RECEIVED, PERSONAL)
    )
    return received, personal
