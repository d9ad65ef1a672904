"""One participant's training: mini-batch optimisation of one loss, and evaluation.

Local modes differ in their loss alone; :data:`LOCAL_LOSSES` names them.

BatchNorm rule. A batch of one example has no variance, so for models with BatchNorm a trailing batch of one
joins the batch before it; where every batch would hold one example (one example, or batch size 1),
BatchNorm layers use their running statistics and leave them as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from kdfed.config import KDLocal, LocalSettings, OptimiserSettings, ProximalLocal, TeacherSettings
from kdfed.distill.vanilla import kd_loss
from kdfed.errors import KdfedError
from kdfed.seeding import torch_seed

if TYPE_CHECKING:
    from kdfed.data import Examples

LossFunction: TypeAlias = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""(model, inputs, labels) -> scalar loss, the mean over the batch."""


@dataclass(frozen=True)
class TrainResult:
    """What a training left beside the weights.

    Parameters
    ----------
    loss
        Mean loss over the examples of the last epoch, each taken before the step it led to.
    steps
        Optimiser steps.
    examples
        Examples trained on, each counted once.
    """

    loss: float
    steps: int
    examples: int


# ----------------------------------------------------------------------------- losses of the local modes


def plain_loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats."""
    return functional.cross_entropy(model(inputs), labels)


def proximal_loss(received: nn.Module, settings: ProximalLocal) -> LossFunction:
    r"""Cross entropy plus a pull towards the received weights.

    .. math:: \mathrm{CE} + \frac{\mu}{2} \lVert w - w^t \rVert^2

    over all parameters w; :math:`w^t` are the received ones. With :math:`\mu = 0` it is :func:`plain_loss`.

    References
    ----------
    Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127, equation 2.
    """
    if settings.mu == 0:
        return plain_loss
    anchors = [parameter.detach().clone() for parameter in received.parameters()]

    def loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pairs = zip(model.parameters(), anchors, strict=True)
        distance = torch.stack([(parameter - anchor).square().sum() for parameter, anchor in pairs]).sum()
        return plain_loss(model, inputs, labels) + settings.mu / 2 * distance

    return loss


def kd_local_loss(received: nn.Module, settings: KDLocal) -> LossFunction:
    r"""Distillation from the received model, which stays frozen (in evaluation mode).

    .. math:: (1 - w)\,\mathrm{CE} + w\,T^2\,\mathrm{KL}(\sigma(t / T) \,\|\, \sigma(s / T))

    with the softmax :math:`\sigma` and logits t of the received model, s of the trained one. With w = 0 it
    is :func:`plain_loss`.

    References
    ----------
    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    if settings.weight == 0:
        return plain_loss
    teacher = copy.deepcopy(received).eval().requires_grad_(False)
    temperature, weight = settings.temperature, settings.weight

    def loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target_NC = torch.softmax(teacher(inputs) / temperature, dim=1)
        return kd_loss(model(inputs), target_NC, labels, temperature, weight)

    return loss


LOCAL_LOSSES: dict[str, Callable[[nn.Module, Any], LossFunction]] = {
    "plain": lambda received, settings: plain_loss,
    "proximal": proximal_loss,
    "kd": kd_local_loss,
}
"""Local mode -> loss, given the received model and the mode's settings."""

LOCAL_MODES: dict[str, str] = {
    "plain": "cross entropy",
    "proximal": "cross entropy plus mu/2 times the squared distance to the received weights (FedProx)",
    "kd": "cross entropy plus distillation from the received model, which stays frozen",
}
"""What can stand in ``local.mode``."""


# ----------------------------------------------------------------------------- training


def train_local(model: nn.Module, examples: Examples, settings: LocalSettings, seed: int) -> TrainResult:
    """Train a participant's model in one federated round, in place; the model holds the received weights."""
    return fit(model, examples, settings, LOCAL_LOSSES[settings.mode](model, settings), seed)


def train_teacher(model: nn.Module, examples: Examples, settings: TeacherSettings, seed: int) -> TrainResult:
    """Train a participant's teacher by cross entropy before the first round, in place."""
    return fit(model, examples, settings, plain_loss, seed)


def fit(
    model: nn.Module, examples: Examples, settings: OptimiserSettings, loss: LossFunction, seed: int
) -> TrainResult:
    """Minimise a loss over examples by mini-batches, in place, on the model's device.

    Parameters
    ----------
    model
        Trained in place; left in training mode.
    examples
        At least one.
    settings
        Epochs, batch size and optimiser.
    loss
        Mean loss of a batch.
    seed
        Derived seed of the order of examples and of dropout.

    Returns
    -------
    TrainResult
        Last epoch's loss, steps, examples.

    Raises
    ------
    KdfedError
        If there is no example.
    """
    examples = examples.to(device_of(model))

    def batch_loss(index: torch.Tensor) -> torch.Tensor:
        return loss(model, examples.inputs[index], examples.labels[index])

    steps, mean = 0, math.nan
    with torch_seed(seed):
        for losses, sizes in epochs(model, len(examples), settings, batch_loss, seed):
            steps += len(sizes)
            mean = _weighted_mean(losses, sizes)
    return TrainResult(mean, steps, len(examples))


def _weighted_mean(losses: list[torch.Tensor], sizes: list[int]) -> float:
    values = torch.stack(losses).cpu().double()
    return float(values @ torch.tensor(sizes, dtype=torch.float64)) / sum(sizes)


def epochs(
    model: nn.Module,
    count: int,
    settings: OptimiserSettings,
    batch_loss: Callable[[torch.Tensor], torch.Tensor],
    seed: int,
    schedule: Callable[[float], float] | None = None,
) -> Iterator[tuple[list[torch.Tensor], list[int]]]:
    """Run the epochs of a training, one each time the iterator is advanced.

    Parameters
    ----------
    model
        Trained in place.
    count
        Number of examples, at least one.
    settings
        Epochs, batch size and optimiser.
    batch_loss
        Mean loss of the examples with these indices (int64, on the model's device).
    seed
        Derived seed of the order of examples, which is drawn anew for every epoch.
    schedule
        Share of the steps done, in [0, 1) -> factor of the learning rate. Default: always 1.

    Yields
    ------
    tuple of list
        The detached loss (a scalar tensor) and the size of each batch of an epoch.

    Raises
    ------
    KdfedError
        If there is no example.
    """
    if count == 0:
        raise KdfedError("expected at least one example to train on, got none; raise partition.min-examples")
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    sizes = batch_sizes(count, settings.batch_size, merge_single=bool(norms))
    optimizer = make_optimizer(model, settings)
    generator = torch.Generator().manual_seed(seed)
    device = device_of(model)
    for epoch in range(settings.epochs):
        model.train()
        if sizes[0] == 1:
            for norm in norms:
                norm.eval()
        losses = []
        order = torch.randperm(count, generator=generator).to(device)
        for step, index in enumerate(torch.split(order, sizes)):
            if schedule is not None:
                done = (epoch + step / len(sizes)) / settings.epochs
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * schedule(done)
            optimizer.zero_grad(set_to_none=True)
            loss = batch_loss(index)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
        yield losses, sizes


def batch_sizes(count: int, batch_size: int, *, merge_single: bool) -> list[int]:
    """Return the sizes of an epoch's batches; ``merge_single`` is the BatchNorm rule of this module."""
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if merge_single and rest == 1 and full > 0:
        sizes[-2:] = [batch_size + 1]
    return sizes


def make_optimizer(model: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """Return a fresh optimiser of the parameters that are trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=lr, weight_decay=decay)


# ----------------------------------------------------------------------------- evaluation


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device


def predict(model: nn.Module, inputs: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Return a model's logits, in evaluation mode; the mode is restored.

    Parameters
    ----------
    model
        On any device.
    inputs
        Tensor [N, ...] on any device, N at least 1.
    batch_size
        Examples at a time.

    Returns
    -------
    torch.Tensor
        Logits [N, C] on the CPU, without gradient.
    """
    device, was_training = device_of(model), model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(batch.to(device)).cpu() for batch in torch.split(inputs, batch_size)])
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Return a model's accuracy in [0, 1] and its mean cross entropy in nats.

    Raises
    ------
    KdfedError
        If there is no example.
    """
    if len(examples) == 0:
        raise KdfedError("expected at least one example to evaluate on, got none")
    logits_NC, labels_N = predict(model, examples.inputs), examples.labels.cpu()
    return accuracy(logits_NC, labels_N), float(functional.cross_entropy(logits_NC, labels_N))


def accuracy(outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Return the share of examples whose largest logit (or probability) is the label's."""
    return int((outputs_NC.argmax(1) == labels_N).sum()) / len(labels_N)
