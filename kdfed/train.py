"""One participant's training: mini-batch optimisation of one loss, and evaluation.

BatchNorm rule. A batch of one example has no variance, so for models with BatchNorm a trailing batch of one
joins the batch before it; where every batch would hold one example (one example, or batch size 1),
BatchNorm layers use their running statistics and leave them as they are. :func:`epochs` holds to the rule for
all models that are trained on the same batches, if one of them has BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdfed.errors import KdfedError
from kdfed.local.loss import LocalLoss
from kdfed.models import batch_norms, device_of, spare_inputs
from kdfed.optimisers import Optimiser
from kdfed.seeding import shuffled, torch_seed
from kdfed.settings import OptimiserSettings
from kdfed.task import Task

if TYPE_CHECKING:
    from kdfed.data import Examples


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


# ----------------------------------------------------------------------------- training


def fit(
    model: nn.Module, examples: Examples, settings: OptimiserSettings, loss: LocalLoss, seed: int
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
        What is minimised.
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
    spare_inputs(model)

    def batch_loss(index: torch.Tensor) -> torch.Tensor:
        return loss.mean(model, examples.inputs[index], examples.labels[index])

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
    schedule: Callable[[float, float], float] | None = None,
    clip: float = 0.0,
    peers: Sequence[nn.Module] = (),
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
        Share of the steps done, in [0, 1), and the share that one step is -> factor of the learning rate.
        Default: always 1.
    clip
        Largest norm of a gradient, see :func:`clip_gradient`.
    peers
        Other models that ``batch_loss`` trains on the same batches; their modes are set here too.

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
    norms = [norm for each in (model, *peers) for norm in batch_norms(each)]
    sizes = batch_sizes(count, settings.batch_size, merge_single=bool(norms))
    optimizer = make_optimizer(model, settings)
    device = device_of(model)
    for epoch in range(settings.epochs):
        for each in (model, *peers):
            each.train()
        if sizes[0] == 1:
            for norm in norms:
                norm.eval()
        losses = []
        order = torch.from_numpy(shuffled([seed], epoch, [count])[0]).to(device)
        for step, index in enumerate(torch.split(order, sizes)):
            if schedule is not None:
                done = (epoch + step / len(sizes)) / settings.epochs
                factor = schedule(done, 1 / (len(sizes) * settings.epochs))
                optimizer.lr = settings.lr * factor
            optimizer.zero_grad()
            loss = batch_loss(index)
            loss.backward()  # type: ignore[no-untyped-call]
            clip_gradient(model, clip)
            optimizer.step()
            losses.append(loss.detach())
        yield losses, sizes


def clip_gradient(model: nn.Module, norm: float) -> None:
    """Scale the gradient of all parameters together down to a norm, where it is larger; 0 turns it off."""
    if norm > 0:
        nn.utils.clip_grad_norm_(model.parameters(), norm)


def batch_sizes(count: int, batch_size: int, *, merge_single: bool) -> list[int]:
    """Return the sizes of an epoch's batches; ``merge_single`` is the BatchNorm rule of this module."""
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if merge_single and rest == 1 and full > 0:
        sizes[-2:] = [batch_size + 1]
    return sizes


def make_optimizer(model: nn.Module, settings: OptimiserSettings) -> Optimiser:
    """Return a fresh optimiser of the parameters that are trained."""
    return Optimiser((one for one in model.parameters() if one.requires_grad), settings)


# ----------------------------------------------------------------------------- evaluation


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
    spare_inputs(model)
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(batch.to(device)).cpu() for batch in torch.split(inputs, batch_size)])
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, examples: Examples, task: Task) -> tuple[float, float]:
    """Return a model's score and its mean loss: those of the task; accuracy and nats where there are classes.

    Raises
    ------
    KdfedError
        If there is no example.
    """
    if len(examples) == 0:
        raise KdfedError("expected at least one example to evaluate on, got none")
    logits_NC, labels_N = predict(model, examples.inputs), examples.labels.cpu()
    return task.score(logits_NC, labels_N), task.loss(logits_NC, labels_N)
