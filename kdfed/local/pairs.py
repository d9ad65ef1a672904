"""A received and a personal model side by side, as one model that a cohort can train.

The pair's logits are those of both, the received model's first, so that one loss on them trains both:
:func:`kdfed.train.mutual_local_loss`. A pair's state is put together from the states of its halves, and taken
apart into them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from kdfed.models import SPARING, State, spare_inputs

RECEIVED, PERSONAL = "received", "personal"


class Pair(nn.Module):
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
        for half in (received, personal):
            spare_inputs(half)
        self.received, self.personal = received, personal

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [N, 2C] of inputs [N, ...]."""
        return torch.cat([self.received(inputs), self.personal(inputs)], dim=1)


SPARING.add(Pair)


def pair_state(received: Mapping[str, torch.Tensor], personal: Mapping[str, torch.Tensor]) -> State:
    """Return the state of a pair; its tensors are those of the halves."""
    return {
        f"{half}.{key}": value
        for half, state in ((RECEIVED, received), (PERSONAL, personal))
        for key, value in state.items()
    }


def halves(pair: Mapping[str, torch.Tensor]) -> tuple[State, State]:
    """Return the received and the personal half of a pair's state, or of a stack of them."""
    received, personal = (
        {key.removeprefix(f"{half}."): value for key, value in pair.items() if key.startswith(f"{half}.")}
        for half in (RECEIVED, PERSONAL)
    )
    return received, personal
