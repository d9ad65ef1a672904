r"""One step from the same weights, for participants of whom only the sum is wanted.

Participants i with :math:`n_i` examples that all start from w and make one step of SGD end at
:math:`w_i = w - \eta\,(\nabla L_i + \lambda w)`, with the learning rate :math:`\eta`, the weight decay
:math:`\lambda` and the mean loss :math:`L_i` of their examples, plus a penalty P on the weights. So

.. math:: \sum_i n_i w_i = (1 - \eta \lambda) N w - \eta\,\nabla \Big(\sum_x \ell(x) + N\,P(w)\Big)

where :math:`\ell(x)` is the loss of example x and N is the number of all examples: one backward pass over
everybody's examples, without a copy of the weights or a gradient for each participant. In this way FedAvg
with one local step is large-batch SGD (McMahan et al. 2017, arXiv 1602.05629, section 2: FedSGD).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from kdfed.cohort.levels import CohortPlan, functional_call, kind_of
from kdfed.local import LocalLoss
from kdfed.models import State
from kdfed.settings import OptimiserSettings
from kdfed.train import TrainResult

if TYPE_CHECKING:
    from kdfed.data import Examples

PASS_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}
"""Bytes of all layers' outputs in one pass, by device type: more would fall out of a CPU's caches."""

LEAST_EXAMPLES, MOST_EXAMPLES = 64, 8192
"""Examples of a pass: fewer leave a CPU idle, more gain nothing."""

NARROW = 32
"""Channels. Where every convolution is narrower, a CPU takes less time for groups of examples side by side,
which make up twice as many channels (``python tests/bench/folding.py --groups``)."""


def one_step_participants(plan: CohortPlan, counts: np.ndarray, settings: OptimiserSettings) -> np.ndarray:
    """Return the indices of the participants who make one step of SGD, and whose examples do not mix.

    Parameters
    ----------
    plan
        Of their model, which must see each example alone (no BatchNorm).
    counts
        int64 [B]: numbers of examples, at least one each.
    settings
        Epochs, batch size and optimiser.

    Returns
    -------
    numpy.ndarray
        int64 [R], rising.
    """
    applies = settings.optimizer == "sgd" and settings.epochs == 1 and plan.sees_examples_alone
    return np.flatnonzero((counts <= settings.batch_size) & applies)


def sum_of_steps(
    plan: CohortPlan,
    start: State,
    examples: Examples,
    sizes: Sequence[int],
    settings: OptimiserSettings,
    loss: LocalLoss,
) -> tuple[State, list[TrainResult]] | None:
    """Return the sum of participants' weights after one step, each times its number of examples.

    Parameters
    ----------
    plan
        Of a model on the device of the examples, which sees each alone.
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
        The sums, float64 on the CPU, each [*shape], and everybody's result. None where a number is not
        finite, or a weight is not used: then each participant must be trained on its own.
    """
    device, total = examples.inputs.device, len(examples)
    names = [name for name, _ in plan.model.named_parameters()]
    leaves = [_channels_last(start[name].detach().to(device)).requires_grad_() for name in names]
    own = dict(zip(names, leaves, strict=True))
    # On the CPU: not every device has float64.
    gradients = [torch.zeros(leaf.shape, dtype=torch.float64) for leaf in leaves]
    losses = []
    groups = _groups(plan.model) if device.type == "cpu" else 1
    width = _width(plan, device) // groups * groups
    for inputs, labels in zip(
        torch.split(examples.inputs, width), torch.split(examples.labels, width), strict=True
    ):
        if groups > 1 and len(inputs) % groups == 0:
            alike = {name: leaf.expand(groups, *leaf.shape) for name, leaf in own.items()}
            dealt = inputs.view(groups, -1, *inputs.shape[1:])
            logits = plan.forward(alike, dealt, norm_training=False).flatten(0, 1)
        else:
            with _UnitStrides():
                logits = functional_call(plan.model, own, _channels_last(inputs))
        each = loss.examples(inputs, logits, labels)
        found = torch.autograd.grad(each.sum(), leaves, allow_unused=True)
        if any(gradient is None for gradient in found):  # SGD leaves such a weight as it is, decay or not
            return None
        torch._foreach_add_(gradients, [gradient.cpu() for gradient in found])
        losses.append(each.detach())
    penalty = torch.zeros(())
    if loss.penalty is not None:
        penalty = loss.penalty({name: leaf.unsqueeze(0) for name, leaf in own.items()})[0]
        found = torch.autograd.grad(penalty, leaves)
        torch._foreach_add_(gradients, [gradient.cpu() for gradient in found], alpha=total)
    sums = {key: total * value.cpu().double() for key, value in start.items()}
    for name, gradient in zip(names, gradients, strict=True):
        sums[name] *= 1 - settings.lr * settings.weight_decay
        sums[name] -= settings.lr * gradient
    begins = np.cumsum(sizes) - sizes
    each_loss = torch.cat(losses).cpu().double().numpy()
    means = np.add.reduceat(each_loss, begins.tolist()) / sizes + float(penalty.detach())
    # In the weights' own dtype: where one participant's weights overflow, their sum does.
    finite = [bool(sums[key].to(value.dtype).isfinite().all()) for key, value in start.items()]
    if not all(finite) or not np.isfinite(means).all():
        return None
    return sums, [TrainResult(mean, 1, size) for mean, size in zip(means.tolist(), sizes, strict=True)]


def _width(plan: CohortPlan, device: torch.device) -> int:
    """Return how many examples one pass takes."""
    fitting = int(PASS_BYTES[kind_of(device)] // max(plan.cost.activation_bytes, 1))
    return max(LEAST_EXAMPLES, min(MOST_EXAMPLES, fitting))


def _groups(model: nn.Module) -> int:
    """Return how many groups of examples lie side by side."""
    widths = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return 2 * NARROW // max(widths) if widths and max(widths) < NARROW else 1


class _UnitStrides(TorchFunctionMode):
    """Leave pixels out before a 1x1 convolution instead of striding over them; the bits are the same.

    Striding over a channels-last image of fewer than eight channels, oneDNN's backward pass writes
    past its buffers.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d:  # as nn.Conv2d calls it, the only one in a model of registered layers
            inputs, weight, bias, stride, padding, *rest = args
            if weight.shape[2:] == (1, 1) and padding in ((0, 0), "valid"):
                inputs = inputs[:, :, :: stride[0], :: stride[1]]
                args = (inputs, weight, bias, (1, 1), padding, *rest)
        return func(*args, **(kwargs or {}))


def _channels_last(values: torch.Tensor) -> torch.Tensor:
    """Return images or filters as convolutions on a CPU want them: as they come, they take twice as long."""
    if values.ndim != 4 or values.is_cuda:
        return values
    return values.clone(memory_format=torch.channels_last)  # contiguous() leaves a single channel as it is
