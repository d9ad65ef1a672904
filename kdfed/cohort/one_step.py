r"""One step from the same weights, for participants of whom only the sum is wanted.

Participants i with :math:`n_i` examples that all start from w and make one step of SGD end at
:math:`w_i = w - \eta\,(\nabla L_i + \lambda w)`, with the learning rate :math:`\eta`, the weight decay
:math:`\lambda` and the mean loss :math:`L_i` of their examples, plus a penalty P on the weights. So

.. math:: \sum_i n_i w_i = (1 - \eta \lambda) N w - \eta\,\nabla \Big(\sum_x \ell(x) + N\,P(w)\Big)

where :math:`\ell(x)` is the loss of example x and N is the number of all examples: one backward pass over
everybody's examples, without a copy of the weights or a gradient for each participant. This is how FedAvg
with one local step is large-batch SGD (McMahan et al. 2017, arXiv 1602.05629, section 2: FedSGD).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from kdfed.cohort.levels import Plan, kind_of
from kdfed.config import OptimiserSettings
from kdfed.models import State
from kdfed.train import LocalLoss, TrainResult

if TYPE_CHECKING:
    from kdfed.data import Examples

PASS_EXAMPLES = {"cpu": 128, "cuda": 8192}
"""Examples of one backward pass, by device type: on a CPU more fall out of its caches."""


def who_makes_one_step(
    plan: Plan, sizes: Sequence[int], settings: OptimiserSettings
) -> np.ndarray:
    """Return the places of participants who make one step of SGD, of a model that sees each example alone.

    Parameters
    ----------
    plan
        Of their model.
    sizes
        Numbers of examples, at least one each.
    settings
        Epochs, batch size and optimiser.

    Returns
    -------
    numpy.ndarray
        int64 [R], rising; empty where the model mixes examples, or draws numbers of its own.
    """
    if settings.optimizer != "sgd" or settings.epochs > 1 or not plan.sees_examples_alone:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.asarray(sizes) <= settings.batch_size)


def sum_of_steps(
    model: nn.Module,
    start: State,
    examples: Examples,
    sizes: Sequence[int],
    settings: OptimiserSettings,
    loss: LocalLoss,
) -> tuple[State, list[TrainResult]] | None:
    """Return the sum of participants' weights after one step, each times its number of examples.

    Parameters
    ----------
    model
        The architecture, on the device of the examples. Not changed.
    start
        The weights that all start from.
    examples
        Everybody's, one participant after the other.
    sizes
        How many of them each of R participants holds.
    settings, loss
        The step, and what it minimises.

    Returns
    -------
    tuple of State and list of TrainResult, or None
        The sums, float64 on the CPU, each [*shape], and everybody's result. None where a number is not finite:
        then each participant must be looked at.
    """
    device, total = examples.inputs.device, sum(sizes)
    leaves = {
        name: start[name].detach().to(device).requires_grad_() for name, _ in model.named_parameters()
    }
    gradients = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in leaves.items()}
    losses = []
    for begin in range(0, total, PASS_EXAMPLES[kind_of(device)]):
        rows = slice(begin, begin + PASS_EXAMPLES[kind_of(device)])
        inputs, labels = examples.inputs[rows], examples.labels[rows]
        each = loss.examples(inputs, torch.func.functional_call(model, leaves, inputs), labels)
        for name, own in zip(leaves, torch.autograd.grad(each.sum(), list(leaves.values())), strict=True):
            gradients[name] += own
        losses.append(each.detach())
    penalty = torch.zeros(())
    if loss.penalty is not None:
        penalty = loss.penalty({name: leaf.unsqueeze(0) for name, leaf in leaves.items()})[0]
        for name, own in zip(leaves, torch.autograd.grad(penalty, list(leaves.values())), strict=True):
            gradients[name] += total * own
    sums = {key: total * value.double().cpu() for key, value in start.items()}
    for name, gradient in gradients.items():
        sums[name] *= 1 - settings.lr * settings.weight_decay
        sums[name] -= settings.lr * gradient.cpu()
    ends = np.cumsum(sizes)
    means = np.add.reduceat(torch.cat(losses).double().cpu().numpy(), ends - sizes) / sizes + float(penalty)
    if not np.isfinite(means).all() or not all(bool(values.isfinite().all()) for values in sums.values()):
        return None
    return sums, [TrainResult(mean, 1, size) for mean, size in zip(means.tolist(), sizes, strict=True)]
