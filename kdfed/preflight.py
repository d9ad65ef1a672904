"""What only shows once the data are there, checked before anything is started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from kdfed.arrays import spec_of
from kdfed.closed_form.features import head_of
from kdfed.config import Arm, Experiment
from kdfed.config.checks import refusals_from, used_parts, used_sections
from kdfed.data import PreparedData, prepare
from kdfed.device import resolve_device
from kdfed.errors import ConfigError, DataError, KdfedError, Mistake
from kdfed.models import batch_norms, build_model, state_of
from kdfed.partition import partition_of
from kdfed.reading import shape_read
from kdfed.records import load_model, load_start
from kdfed.saved import Card
from kdfed.settings import DistillationSettings, ModelSettings, ServerFitSettings
from kdfed.shelf import problems_with_teachers
from kdfed.thing import Thing, within


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
        data = prepare(experiment.loaded_data)
        for seed in () if experiment.data.of_devices else experiment.seeds:
            partition_of(data, experiment.partition, seed)
    except DataError as error:
        mistakes.append(Mistake(_key_of_data(error.key, experiment), str(error)))
    for name in experiment.arm_order:
        mistakes += _check_arm(experiment.arm(name), data, _Keys(experiment, name))
    return list(dict.fromkeys(mistakes))


def _key_of_data(key: str, experiment: Experiment) -> str:
    """Return where a key of the data stands, of which a part is the server's own beside devices."""
    section, _, name = key.partition(".")
    theirs = experiment.server_data is not None and section == "data"
    return f"server-data.{name}" if theirs and name.partition(".")[0] in _OF_THE_SERVER else key


_OF_THE_SERVER = ("source", "splits", "limit", "columns")


class _Keys:
    """Where an arm's key stands in the file: in the arm, or in the experiment that all arms share."""

    def __init__(self, experiment: Experiment, arm: str) -> None:
        self._replaced = {str(key).partition(".")[0] for key in experiment.arms[arm]}
        self._arm = arm

    def __call__(self, key: str) -> str:
        return f"arms.{self._arm}.{key}" if key.partition(".")[0] in self._replaced else key


def _check_arm(arm: Arm, data: PreparedData | None, key: _Keys) -> Iterator[Mistake]:
    student, _ = _try_model(arm.model, data)
    everything = used_parts(arm)
    for where, part in everything:
        on_shelf = where.startswith("teachers.from")  # has classes of its own
        for mistake in _try_model(part, data)[1] if isinstance(part, ModelSettings) and not on_shelf else ():
            yield Mistake(key(where + mistake.key.removeprefix("model")), mistake.message)
    if data is not None:
        for where, part in everything:
            if isinstance(part, Thing):
                for refusal in refusals_from(part, lambda thing: thing.misfits(arm, data)):
                    yield Mistake(key(within(refusal, where).key), refusal.message)
        on_shelf = "teachers" in used_sections(arm) and arm.teachers.from_ is not None
        if on_shelf and student is not None:  # else its own mistake is told
            found = problems_with_teachers(arm, Card.of(arm.model, arm.data, data))
            yield from (Mistake(key(one.key), one.message) for one in found)
    wants_head = [("closed-form", arm.closed_form is not None)]
    wants_head += [("local.trainable", arm.local.trainable != "all")]
    for section, wanted in wants_head:
        if not wanted or student is None or data is None:
            continue
        if arm.local.trainable == "head" and section == "local.trainable" and batch_norms(student):
            yield Mistake(
                key(section),
                "expected 'all' or 'body' of a model with BatchNorm, whose statistics would change below the "
                "head, got 'head'",
            )
        try:
            head_of(student, shape_read(arm.model, data.input_shape))
        except KdfedError as error:
            yield Mistake(key(section), str(error))
    if arm.start.startswith("file:"):
        yield from _check_start(arm.start.removeprefix("file:"), student, key("start"))
    if data is not None and not data.dataset.is_images:
        for where, part in everything:
            changes = part.augmentation if isinstance(part, DistillationSettings | ServerFitSettings) else ()
            if changes and changes != "auto":
                yield Mistake(
                    key(f"{where}.augmentation"),
                    f"expected images to {' and '.join(changes)}, got feature vectors; remove it",
                )


def _try_model(
    settings: ModelSettings, data: PreparedData | None
) -> tuple[nn.Module | None, Sequence[Mistake]]:
    """Build a model for the data; there is nothing to say without data."""
    if data is None:
        return None, ()
    try:
        return build_model(settings, data.input_shape, data.classes, seed=0), ()
    except ConfigError as error:
        return None, error.mistakes


def _check_start(path: str, student: nn.Module | None, key: str) -> Iterator[Mistake]:
    try:
        if student is None:
            load_model(path)
        else:
            load_start(path, spec_of(state_of(student)))
    except DataError as error:
        yield Mistake(key, str(error))
