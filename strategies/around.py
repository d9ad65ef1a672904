"""What ``PreConsolidation.around`` makes of a few words: the arm of a Flower app that is there already.

Such an app has a model of its own, which is built without arguments (``Net()``), a train handler that decides
itself how it trains, and data sets of PyTorch. So nothing here says how participants train, beside how often
a teacher's handler is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from flwr.serverapp.strategy import FedProx, Strategy
from pydantic import ValidationError
from torch import nn

from kdfed.config import Arm
from kdfed.data import Examples, Loadable, examples_of_loader
from kdfed.distill import KDMethod, VanillaConsolidation
from kdfed.errors import ConfigError, DataError, Mistake, one_line, shown
from kdfed.listeners import Listener
from kdfed.local import LocalMode, PlainLocal, ProximalLocal
from kdfed.models import build_model, outputs_of
from kdfed.named import NamedError, load_named
from kdfed.partitions import UniformPartition
from kdfed.records.parsing import problems_of
from kdfed.seeding import derive, torch_generator
from kdfed.server import GivenStrategy
from kdfed.settings import ModelSettings, RoundSettings, TeacherSettings
from kdfed.task import CLASSIFICATION
from strategies.arm_config import ArmConfig, ServerData
from strategies.wrapped import layers

OwnModel: TypeAlias = Callable[[], nn.Module] | str | ModelSettings
"""A class or function without arguments, its ``package.module:name``, or that with options."""

_HELD_BACK = 5  # one of so many transfer examples becomes a validation example


def default_consolidation(examples: int) -> VanillaConsolidation:
    """Return a distillation on so many examples whose student comes close to its ensemble.

    Adam takes steps of the same size whatever the scale of a model's inputs and of its loss. There are 60
    epochs, or as many as make 1,000 steps of 32 examples.
    """
    steps = math.ceil(examples / 32)
    return VanillaConsolidation(
        temperature=3.0,
        epochs=max(60, math.ceil(1000 / steps)),
        batch_size=32,
        optimizer="adam",
        lr=3e-3,
        schedule="cosine",
    )


def arm_around(
    strategy: Strategy,
    *,
    model: OwnModel,
    participants: int,
    transfer: Loadable,
    validation: Loadable | None = None,
    teacher_epochs: int = 10,
    consolidation: KDMethod | None = None,
    start: str = "consolidated",
    sampled: int | float | Literal["all"] = "all",
    targets: tuple[float, ...] = (),
    seed: int = 0,
    listeners: tuple[Listener, ...] = (),
) -> ArmConfig:
    """Return the arm of :meth:`strategies.pre_consolidation.PreConsolidation.around`, which see."""
    _check_arguments(strategy, targets, seed, listeners)
    settings = settings_of(model)
    held = examples_of_loader(transfer, "transfer")
    if validation is None:
        held, validation_examples = _held_back(held, seed)
    else:
        validation_examples = examples_of_loader(validation, "validation")
    shape = tuple(held.inputs.shape[1:])
    if tuple(validation_examples.inputs.shape[1:]) != shape:
        raise DataError(
            f"expected validation inputs of shape {shape}, as transfer has, got "
            f"{tuple(validation_examples.inputs.shape[1:])}"
        )
    most = max(int(each.labels.max()) for each in (held, validation_examples))
    classes = outputs_of(settings, shape) or most + 1
    least = min(int(each.labels.min()) for each in (held, validation_examples))
    if least < 0 or most >= classes:
        raise DataError(
            f"expected labels from 0 to {classes - 1}, one for each output of {shown(settings.name)}, got "
            f"{least if least < 0 else most}"
        )
    build_model(settings, shape, classes, derive(seed, "init"))  # refuses what cannot be trained or averaged
    try:
        arm = Arm(
            start=start,
            model=settings,
            local=_local(strategy),
            teachers=TeacherSettings(epochs=teacher_epochs, batch_size=1),
            consolidation=consolidation or default_consolidation(len(held)),
            partition=UniformPartition(participants=participants),
            server=GivenStrategy(sampled=sampled),
            rounds=RoundSettings(stop_at_target=bool(targets)),
        )
    except ValidationError as error:
        raise ConfigError("PreConsolidation.around", [Mistake("", one_line(problems_of(error)))]) from error
    refused = [Mistake(refusal.key.lstrip("."), refusal.message) for refusal in arm.server.refusals(arm)]
    if refused:
        raise ConfigError("PreConsolidation.around", refused)
    data = ServerData(
        transfer=held,
        validation=validation_examples,
        transfer_inputs=held.inputs.numpy(),
        classes=classes,
        task=CLASSIFICATION,
    )
    return ArmConfig(arm=arm, data=data, seed=seed, targets=targets, listeners=listeners)


def _check_arguments(
    strategy: object, targets: Sequence[object], seed: object, listeners: Sequence[object]
) -> None:
    """Refuse what would fail in the middle of a run."""
    mistakes = []
    if not isinstance(strategy, Strategy):
        mistakes.append(Mistake("strategy", f"expected a Flower strategy, got {shown(strategy)}"))
    if not (
        isinstance(targets, list | tuple)
        and all(isinstance(one, int | float) and 0 < one <= 1 for one in targets)
    ):
        mistakes.append(Mistake("targets", f"expected a list of accuracies in (0, 1], got {shown(targets)}"))
    if not isinstance(seed, int) or seed < 0:
        mistakes.append(Mistake("seed", f"expected a whole number of at least 0, got {shown(seed)}"))
    if not (isinstance(listeners, list | tuple) and all(isinstance(one, Listener) for one in listeners)):
        mistakes.append(
            Mistake(
                "listeners", f"expected a list of kdfed.listeners.Listener objects, got {shown(listeners)}"
            )
        )
    if mistakes:
        raise ConfigError("PreConsolidation.around", mistakes)


def settings_of(model: OwnModel) -> ModelSettings:
    """Return the settings of a model that is given as a class or function, or by name.

    Raises
    ------
    ConfigError
        If a class or function is not what its name stands for, or the model has a backbone.
    """
    if isinstance(model, ModelSettings):
        if model.backbone is not None:
            problem = (
                f"expected a model that reads what handlers give it, got {model.title!r}: a backbone reads "
                "images as they are stored; give it in an experiment"
            )
            raise ConfigError("model", [Mistake("model.backbone", problem)])
        return model
    if isinstance(model, str):
        return ModelSettings(name=model)
    name = f"{getattr(model, '__module__', '')}:{getattr(model, '__qualname__', '')}"
    try:
        found: object = load_named(name)
    except NamedError:
        found = None
    if found is not model:
        problem = (
            f"expected a class or function that can be imported by its name, got {shown(model)}; define it "
            "at the top of a module, or give ModelSettings(name='package.module:name', options={...})"
        )
        raise ConfigError("model", [Mistake("model", problem)])
    return ModelSettings(name=name)


def _held_back(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Return examples without a fifth of them, drawn with the seed, and that fifth."""
    if len(examples) < _HELD_BACK:
        raise DataError(f"expected at least {_HELD_BACK} transfer examples, got {len(examples)}")
    order = torch.randperm(len(examples), generator=torch_generator(seed, "validation"))
    cut = len(order) // _HELD_BACK
    rest, drawn = (
        Examples(examples.inputs[part], examples.labels[part]) for part in (order[cut:], order[:cut])
    )
    return rest, drawn


def _local(strategy: Strategy) -> LocalMode:
    """Return what kdfed asks FedProx to agree with; how an app's own handler trains it does not know.

    A handler may tell its ``local-steps``: of those, batches of one example bound the number.
    """
    for layer in layers(strategy):
        if isinstance(layer, FedProx):
            return ProximalLocal(mu=layer.proximal_mu, batch_size=1)
    return PlainLocal(batch_size=1)
