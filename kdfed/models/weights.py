"""The state of a model, weights and buffers: what is sent, averaged and saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn

from kdfed.errors import KdfedError

State: TypeAlias = dict[str, torch.Tensor]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device


def state_of(model: nn.Module) -> State:
    """Return a copy of a model's weights and buffers: detached, on the CPU, in ``state_dict`` order."""
    return {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()
    }


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy weights and buffers into a model, in place.

    Raises
    ------
    KdfedError
        If a key is missing or unexpected, or has another shape; every one is named.
    """
    own = model.state_dict()
    wrong = [f"missing {key}" for key in own if key not in state]
    wrong += [f"unexpected {key}" for key in state if key not in own]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        raise KdfedError(
            f"these weights belong to another model than {type(model).__name__}: {'; '.join(wrong)}; "
            "use weights of the same model, options, batch-norm, input shape and classes"
        )
    model.load_state_dict(dict(state))


def buffer_keys(model: nn.Module) -> frozenset[str]:
    """Return the state entries that are not parameters: BatchNorm's statistics and counters."""
    return frozenset(model.state_dict()) - {
        name for name, _ in model.named_parameters(remove_duplicate=False)
    }
