"""Logits of many models on the same inputs, in one folded pass a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from kdfed.cohort.folded import Stack
from kdfed.cohort.levels import kind_of, plan_for
from kdfed.models import State, device_of, load_state
from kdfed.train import predict

PREDICT_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
"""Memory budget of the activations of one pass, by device type: models and inputs are cut to fit."""

BATCH = 256


def stack_states(states: Sequence[State]) -> Stack:
    """Return the states of models of one architecture as one stack, each entry [B, *shape]."""
    return {key: torch.stack([state[key] for state in states]) for key in states[0]}


def state_at(stack: Stack, row: int) -> State:
    """Return one model's state of a stack; its tensors are views."""
    return {key: values[row] for key, values in stack.items()}


def predict_stack(model: nn.Module, stack: Stack, inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits of B models on the same inputs, in evaluation mode.

    The inputs are read by all models together, and never copied B times.

    Parameters
    ----------
    model
        The architecture, on the device where it runs. Not changed.
    stack
        Weights and buffers, each [B, *shape].
    inputs
        [N, ...] on any device, N at least 1.

    Returns
    -------
    torch.Tensor
        Logits [B, N, C] on the CPU, without gradient.
    """
    device, count = device_of(model), len(next(iter(stack.values())))
    plan = plan_for(model, tuple(inputs.shape[1:]), min(BATCH, len(inputs)))
    if plan.level == "loop" or count == 1:
        logits = []
        for index in range(count):
            own = copy.deepcopy(model)
            load_state(own, state_at(stack, index))
            logits.append(predict(own, inputs, BATCH))
        return torch.stack(logits)
    each = BATCH * plan.cost.activation_bytes
    width = int(max(1, min(count, PREDICT_BYTES[kind_of(device)] // max(each, 1))))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = []
            for begin in range(0, count, width):
                part = {key: values[begin : begin + width].to(device) for key, values in stack.items()}
                batches = torch.split(inputs, BATCH)
                done = [plan.forward_shared(part, batch.to(device)).cpu() for batch in batches]
                parts.append(torch.cat(done, dim=1))
            return torch.cat(parts)
    finally:
        model.train(was_training)
