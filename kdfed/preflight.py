"""What only shows once the data are there, checked before anything is started."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from kdfed.config import Arm, Experiment, GeneratorSettings, LogitsServer, ModelSettings, MutualLocal
from kdfed.config.checks import several
from kdfed.consolidate import method_problem
from kdfed.data import PreparedData, prepare
from kdfed.device import resolve_device
from kdfed.errors import ConfigError, DataError, Mistake, unknown
from kdfed.generated import teacher_problem
from kdfed.models import build_model, state_of
from kdfed.partition import partition_of
from kdfed.records import load_model, load_start
from kdfed.train import LOCAL_LOSSES
from kdfed.transfer_sets import proxy
from kdfed.wire import spec_of


def check_data(experiment: Experiment) -> list[Mistake]:
    """Load the data and try everything that depends on them, or on this machine.

    The device is looked for, the data are read and split, every seed's participants are dealt, every arm's
    models are built for the data's shape and classes, and weights to start from are read. What was loaded
    stays cached for the run.

    Parameters
    ----------
    experiment
        An experiment that :func:`kdfed.config.build_experiment` found no mistakes in.

    Returns
    -------
    list of Mistake
        Every mistake, each once; empty when the experiment can start.
    """
    mistakes: list[Mistake] = []
    data: PreparedData | None = None
    try:
        resolve_device(experiment.device)
    except DataError as error:
        mistakes.append(Mistake(error.key, str(error)))
    try:
        data = prepare(experiment.data)
        for seed in experiment.seeds:
            partition_of(data, experiment.partition, seed)
    except DataError as error:
        mistakes.append(Mistake(error.key, str(error)))
    for name in experiment.arm_order:
        mistakes += _check_arm(experiment.arm(name), data, _Keys(experiment, name))
    return list(dict.fromkeys(mistakes))


class _Keys:
    """Where an arm's key stands in the file: in the arm, or in the experiment that all arms share."""

    def __init__(self, experiment: Experiment, arm: str) -> None:
        self._replaced = {str(key).partition(".")[0] for key in experiment.arms[arm]}
        self._arm = arm

    def __call__(self, key: str) -> str:
        return f"arms.{self._arm}.{key}" if key.partition(".")[0] in self._replaced else key


def _check_arm(arm: Arm, data: PreparedData | None, key: _Keys) -> Iterator[Mistake]:
    student, message = _try_model(arm.model, data)
    if message:
        yield Mistake(key("model"), message)
    if arm.local.mode not in LOCAL_LOSSES:
        yield Mistake(
            key("local.mode"), str(unknown("mode", arm.local.mode, LOCAL_LOSSES, "kdfed.train.LOCAL_LOSSES"))
        )
    if isinstance(arm.local, MutualLocal):
        yield from _check_models(arm.local.model, data, key("local.model"))
    if isinstance(arm.server, LogitsServer):
        yield from _check_models(arm.server.models, data, key("server.models"))
        wanted = arm.server.images
        if wanted is not None and data is not None and wanted > len(data.splits.transfer):
            yield Mistake(
                key("server.images"),
                f"expected at most the {len(data.splits.transfer)} examples of the transfer split, got "
                f"{wanted}; lower it or hold out more (data.splits.transfer)",
            )
    if arm.start.startswith("file:"):
        yield from _check_start(arm.start.removeprefix("file:"), student, key("start"))
    if arm.start not in ("consolidated", "averaged"):
        return
    yield from _check_models(arm.teachers.model, data, key("teachers.model"))
    problem = method_problem(arm.consolidation) if arm.start == "consolidated" else None
    if problem is not None:
        yield Mistake(key("consolidation.method"), problem)
    if arm.start == "consolidated" and data is not None:
        yield from _check_transfer(arm, data, key)
    augmented = arm.start == "consolidated" and arm.consolidation.augmentation
    if augmented and data is not None and not data.dataset.is_images:
        yield Mistake(
            key("consolidation.augmentation"),
            f"expected images to {' and '.join(augmented)}, got feature vectors; remove it",
        )


def _check_transfer(arm: Arm, data: PreparedData, key: _Keys) -> Iterator[Mistake]:
    """Draw the proxy's images once, and look for what a generator's loss reads of the teachers."""
    settings = arm.consolidation
    if settings.transfer == "proxy" and settings.proxy is not None:
        count = settings.images or len(data.splits.transfer)
        try:
            proxy(settings.proxy, data.input_shape, count, seed=0)
        except DataError as error:
            yield Mistake(key(f"consolidation.{error.key}"), str(error))
    if settings.transfer == "generated":
        for model in several(arm.teachers.model) or (arm.model,):
            teacher, _ = _try_model(model, data)
            problem = teacher and teacher_problem(teacher, settings.generator or GeneratorSettings())
            if problem:
                yield Mistake(key("consolidation.generator.activation-weight"), problem)


def _check_models(
    models: ModelSettings | tuple[ModelSettings, ...] | None, data: PreparedData | None, key: str
) -> Iterator[Mistake]:
    """Try every architecture that a key names."""
    for settings in several(models):
        _, message = _try_model(settings, data)
        if message:
            yield Mistake(key, message)


def _try_model(settings: ModelSettings, data: PreparedData | None) -> tuple[nn.Module | None, str | None]:
    """Build a model for the data; there is nothing to say without data."""
    if data is None:
        return None, None
    try:
        return build_model(settings, data.input_shape, data.classes, seed=0), None
    except ConfigError as error:
        return None, "; ".join(mistake.message for mistake in error.mistakes)


def _check_start(path: str, student: nn.Module | None, key: str) -> Iterator[Mistake]:
    try:
        if student is None:
            load_model(path)
        else:
            load_start(path, spec_of(state_of(student)))
    except DataError as error:
        yield Mistake(key, str(error))
