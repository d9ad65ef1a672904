"""One participant's training: mini-batch optimisation of one loss, and evaluation.

Local modes differ in their loss; :data:`LOCAL_LOSSES` names them. ``mutual`` alone trains another model than
the received one: a pair of which it is one half (:mod:`kdfed.pairs`).

BatchNorm rule. A batch of one example has no variance, so for models with BatchNorm a trailing batch of one
joins the batch before it; where every batch would hold one example (one example, or batch size 1),
BatchNorm layers use their running statistics and leave them as they are. :func:`epochs` holds to the rule for
all models that are trained on the same batches, if one of them has BatchNorm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from kdfed.config import (
    KDLocal,
    LocalSettings,
    MutualLocal,
    NTDLocal,
    OptimiserSettings,
    ProximalLocal,
)
from kdfed.distill.mutual import weighted_losses
from kdfed.errors import KdfedError, unknown
from kdfed.models import batch_norms, spare_inputs
from kdfed.seeding import shuffled, torch_seed
from kdfed.task import CLASSIFICATION, Task

if TYPE_CHECKING:
    from kdfed.data import Examples

ExampleLosses: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(inputs [N, ...], logits [N, C], labels [N]) -> losses [N]."""

Penalty: TypeAlias = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""Parameters by name, each [B, *shape] for B models -> penalties [B]."""


@dataclass(frozen=True)
class LocalLoss:
    """What a participant minimises: the mean of its examples' losses, plus a penalty on its weights.

    Written so that one participant and a whole cohort are trained by the same function: nothing in it may
    mix examples, or models.

    Parameters
    ----------
    examples
        Loss of every example, in nats (of a regression: in variances of the label).
    penalty
        Penalty on the parameters of every model. Default: none.
    """

    examples: ExampleLosses
    penalty: Penalty | None = None

    def mean(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return what one model minimises on a batch: a scalar."""
        mean = self.examples(inputs, model(inputs), labels).mean()
        if self.penalty is None:
            return mean
        stacked = {name: parameter.unsqueeze(0) for name, parameter in model.named_parameters()}
        return mean + self.penalty(stacked)[0]


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


def cross_entropies(inputs: torch.Tensor, logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of every example, [N], in nats."""
    return CLASSIFICATION.losses(logits_NC, labels_N)


PLAIN = LocalLoss(cross_entropies)
"""Cross entropy: plain training of a classification."""


def plain_loss(task: Task) -> LocalLoss:
    """Return plain training: the task's own loss. Of a classification it is :data:`PLAIN`."""
    if task is CLASSIFICATION:
        return PLAIN
    return LocalLoss(lambda inputs, outputs_NC, labels_N: task.losses(outputs_NC, labels_N))


def proximal_loss(received: nn.Module, settings: ProximalLocal, task: Task = CLASSIFICATION) -> LocalLoss:
    r"""Cross entropy (or the task's own loss) plus a pull towards the received weights.

    .. math:: \mathrm{CE} + \frac{\mu}{2} \lVert w - w^t \rVert^2

    over all parameters w; :math:`w^t` are the received ones. With :math:`\mu = 0` it is plain training.

    References
    ----------
    Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127, equation 2.
    """
    plain = plain_loss(task)
    if settings.mu == 0:
        return plain
    anchors = {name: parameter.detach().clone() for name, parameter in received.named_parameters()}

    def penalty(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        distances = [
            # Of a parameter without dimensions, [B], there is nothing to flatten.
            (values_B - anchors[name]).square().unsqueeze(-1).flatten(1).sum(1)
            for name, values_B in parameters.items()
        ]
        return settings.mu / 2 * torch.stack(distances).sum(0)

    return LocalLoss(plain.examples, penalty)


def kd_local_loss(received: nn.Module, settings: KDLocal, task: Task = CLASSIFICATION) -> LocalLoss:
    r"""Distillation from the received model, which stays frozen (in evaluation mode).

    .. math:: (1 - w)\,\mathrm{CE} + w\,T^2\,\mathrm{KL}(\sigma(t / T) \,\|\, \sigma(s / T))

    with the softmax :math:`\sigma` and logits t of the received model, s of the trained one. With w = 0 it
    is plain training. Other tasks have their own target and loss (:mod:`kdfed.task`).

    References
    ----------
    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    if settings.weight == 0:
        return plain_loss(task)
    teacher = _frozen(received)
    temperature, weight = settings.temperature, settings.weight

    def losses(inputs: torch.Tensor, logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target_NC = task.target("mean-logits", teacher(inputs).unsqueeze(0), temperature, None)
        return task.soft_losses(logits_NC, target_NC, labels_N, temperature, weight)

    return LocalLoss(losses)


def ntd_local_loss(received: nn.Module, settings: NTDLocal, task: Task = CLASSIFICATION) -> LocalLoss:
    r"""Distillation of what the received model says about the classes that are not the label.

    .. math:: \mathrm{CE} + \beta\,T^2\,\mathrm{KL}(\tilde\sigma(t / T) \,\|\, \tilde\sigma(s / T))

    with the softmax :math:`\tilde\sigma` over all classes but the label, and logits t of the received model,
    s of the trained one. What the participant's own labels teach is left alone; what it would forget of the
    other classes is kept. With :math:`\beta = 0`, or two classes, it is :data:`PLAIN`.

    References
    ----------
    Lee et al. 2022, "Preservation of the Global Knowledge by Not-True Distillation in Federated Learning",
    arXiv 2106.03097, equations 4 and 5. Ours: the factor :math:`T^2`, as everywhere in kdfed; the source
    has T = 1.

    Raises
    ------
    KdfedError
        If the task has no classes.
    """
    if task is not CLASSIFICATION:
        raise KdfedError(f"local mode 'ntd' needs classes, got task {task.name!r}; use plain, proximal or kd")
    if settings.beta == 0:
        return PLAIN
    teacher = _frozen(received)
    temperature = settings.temperature

    def losses(inputs: torch.Tensor, logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            received_NC = teacher(inputs)
        log_own, log_received = (
            torch.log_softmax(_not_true(values, labels_N) / temperature, dim=1)
            for values in (logits_NC, received_NC)
        )
        divergence_N = functional.kl_div(log_own, log_received, reduction="none", log_target=True).sum(1)
        return cross_entropies(inputs, logits_NC, labels_N) + settings.beta * temperature**2 * divergence_N

    return LocalLoss(losses)


def _frozen(received: nn.Module) -> nn.Module:
    teacher = copy.deepcopy(received).eval().requires_grad_(False)
    spare_inputs(teacher)
    return teacher


def _not_true(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return the logits of the classes that are not the label, [N, C - 1]."""
    classes = logits_NC.shape[1]
    others = torch.arange(classes - 1, device=labels_N.device).expand(len(labels_N), -1)
    return logits_NC.gather(1, others + (others >= labels_N.unsqueeze(1)).long())


def mutual_local_loss(settings: MutualLocal, task: Task = CLASSIFICATION) -> LocalLoss:
    r"""Two models that teach each other: the received one r and the participant's own p.

    .. math::

        \beta\,\mathrm{CE}(r) + (1 - \beta)\,\mathrm{KL}(p \,\|\, r)
        + \alpha\,\mathrm{CE}(p) + (1 - \alpha)\,\mathrm{KL}(r \,\|\, p)

    where no gradient flows into the first argument of KL, so that each model gets that of its own loss. The
    model that is trained is a :class:`kdfed.pairs.Pair`, whose logits are those of both, [N, 2C]. A
    regression has squared errors and squared distances in place of CE and KL.

    References
    ----------
    Shen et al. 2020, "Federated Mutual Learning", arXiv 2006.16765: the losses of the personal model and of
    the received one, the "meme".
    """

    def soft(own: torch.Tensor, peer: torch.Tensor, labels_N: torch.Tensor, weight: float) -> torch.Tensor:
        target_NC = task.target("mean-logits", peer.unsqueeze(0), 1.0, None)
        return task.soft_losses(own, target_NC, labels_N, 1.0, 1 - weight)

    weighted = weighted_losses if task is CLASSIFICATION else soft

    def losses(inputs: torch.Tensor, logits_N2C: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        received_NC, personal_NC = logits_N2C.chunk(2, dim=1)
        received_N = weighted(received_NC, personal_NC, labels_N, settings.beta)
        return received_N + weighted(personal_NC, received_NC, labels_N, settings.alpha)

    return LocalLoss(losses)


Received: TypeAlias = Callable[[], nn.Module]
"""Returns the received model: called only where it is needed."""

LOCAL_LOSSES: dict[str, Callable[[Received, Any, Task], LocalLoss]] = {
    "plain": lambda received, settings, task: plain_loss(task),
    "proximal": lambda received, settings, task: proximal_loss(received(), settings, task),
    "kd": lambda received, settings, task: kd_local_loss(received(), settings, task),
    "ntd": lambda received, settings, task: ntd_local_loss(received(), settings, task),
    "mutual": lambda received, settings, task: mutual_local_loss(settings, task),
}
"""Local mode -> loss, given the received model, the mode's settings and the task."""

LOCAL_MODES: dict[str, str] = {
    "plain": "cross entropy",
    "proximal": "cross entropy plus mu/2 times the squared distance to the received weights (FedProx)",
    "kd": "cross entropy plus distillation from the received model, which stays frozen",
    "ntd": "cross entropy plus distillation of the classes that are not the label (FedNTD)",
    "mutual": "the received model and a personal one, kept between rounds, teach each other (FML)",
}
"""What can stand in ``local.mode``."""


# ----------------------------------------------------------------------------- training


def local_loss(received: Received, settings: LocalSettings, task: Task = CLASSIFICATION) -> LocalLoss:
    """Return the loss of one participant's training in a federated round.

    Raises
    ------
    KdfedError
        If no loss is registered for the mode, or the task does not have it.
    """
    if settings.mode not in LOCAL_LOSSES:
        raise unknown("local.mode", settings.mode, LOCAL_LOSSES, "kdfed.train.LOCAL_LOSSES")
    return LOCAL_LOSSES[settings.mode](received, settings, task)


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
    schedule: Callable[[float], float] | None = None,
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
        Share of the steps done, in [0, 1) -> factor of the learning rate. Default: always 1.
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
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    if settings.optimizer not in kinds:
        raise unknown("optimizer", settings.optimizer, ("sgd", *kinds), "kdfed.train.make_optimizer")
    return kinds[settings.optimizer](parameters, lr=lr, weight_decay=decay)


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
    spare_inputs(model)
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(batch.to(device)).cpu() for batch in torch.split(inputs, batch_size)])
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, examples: Examples, task: Task = CLASSIFICATION) -> tuple[float, float]:
    """Return a model's score and its mean loss: accuracy in [0, 1] and cross entropy in nats, or the task's.

    Raises
    ------
    KdfedError
        If there is no example.
    """
    if len(examples) == 0:
        raise KdfedError("expected at least one example to evaluate on, got none")
    logits_NC, labels_N = predict(model, examples.inputs), examples.labels.cpu()
    return task.score(logits_NC, labels_N), task.loss(logits_NC, labels_N)
