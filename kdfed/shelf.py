"""Models on a shelf: teachers that exist already, and students to start from, read from files.

A file is data: nothing in it is run. One that kdfed wrote says what it is (:class:`kdfed.saved.Card`); of any
other, whoever names it says the model, and where it differs from the student's task, the classes and the
normalisation (:class:`kdfed.settings.TeacherFile`). What is read is checked whole, before anything is
trained.

Shape suffixes: K teachers, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdfed.arrays import problem_with_arrays, spec_of
from kdfed.backbones import is_shipped_backbone, read_state
from kdfed.config import Arm
from kdfed.data.dataset import one_form, repeated
from kdfed.distill import KDMethod
from kdfed.distill.method import view_refusals
from kdfed.distill.partial import AdaptedTeacher
from kdfed.errors import ConfigError, DataError, KdfedError, Mistake, near, shown
from kdfed.models import build_model, is_shipped, load_state, state_of
from kdfed.named import is_named
from kdfed.paths import MODEL_SUFFIXES, models_in, user_path
from kdfed.reading import shape_read
from kdfed.saved import Card, has_card, load, read_card
from kdfed.settings import ModelSettings, TeacherFile
from kdfed.thing import Refusal, within
from kdfed.train import predict
from kdfed.transfer_sets.transfer_set import problem_with_backbones

FEWEST = 2
"""Classes of the student's that a teacher must know at least: between fewer it cannot tell."""


@dataclass(frozen=True, eq=False)
class ShelfTeacher:
    """A teacher from a file, ready to teach a student.

    Parameters
    ----------
    path
        The file.
    settings
        Name and options of its model.
    model
        Takes inputs that are normalised for the student, or on a backbone the activations at its cut
        (:func:`kdfed.reading.inputs_for` its settings); returns logits of the student's classes. It is the
        model of the file itself where nothing differs (:attr:`is_plain`).
    knows
        Which of the student's classes it knows, bool [C].
    label_counts
        Examples of each class that it was trained on, float64 [C]; None where nobody says.
    """

    path: Path
    settings: ModelSettings
    model: nn.Module
    knows: np.ndarray
    label_counts: np.ndarray | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its weights mean what the student's do: same inputs, same outputs."""
        return not isinstance(self.model, AdaptedTeacher)


def model_files(where: str | Sequence[str | TeacherFile], key: str = "teachers.from") -> list[TeacherFile]:
    """Return the files that are named: those of a folder in the order of their names, or of a list.

    Raises
    ------
    DataError
        If there is no such folder, it cannot be read, or no model is in it.
    """
    if not isinstance(where, str):
        return [TeacherFile(file=one) if isinstance(one, str) else one for one in where]
    folder = _path(where, key)
    if not folder.is_dir():
        raise DataError(f"expected a folder with models, or a list of files, got {folder}", key)
    try:
        found = models_in(folder)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}; permit it", key) from error
    if not found:
        suffixes = ", ".join(MODEL_SUFFIXES)
        raise DataError(f"expected models ({suffixes}) in the folder {folder}, got none", key)
    return [TeacherFile(file=str(path)) for path in found]


def card_in(file: TeacherFile, key: str = "teachers.from") -> Card | None:
    """Return what a file itself says of its model; None where it says nothing, or is none.

    Where the weights of its backbone are, whoever names the file can say too.

    Raises
    ------
    DataError
        If it cannot be read, or says something that this release does not understand.
    """
    path = _path(file.file, key)
    try:
        is_one = path.suffix == ".safetensors" and path.is_file() and has_card(path)
        card = read_card(path) if is_one else None
        if card is None or file.model is None or "weights" not in file.model.model_fields_set:
            return card
        return card.with_weights(file.model.weights)
    except DataError as error:
        raise DataError(str(error), key) from error


def read_teacher(file: TeacherFile, student: Card, key: str = "teachers.from") -> ShelfTeacher:
    """Read a teacher, and make it one of a student's.

    Parameters
    ----------
    file
        The file, and what it does not say.
    student
        What the student learns: inputs, normalisation, classes.
    key
        Where the file is named.

    Raises
    ------
    DataError
        If the file cannot be read, holds anything but weights, or they are those of another model; or the
        model has other inputs or another task than the student, knows fewer than two of its classes, or
        gives no finite logits.
    """
    card, model, says = _read(file, student, key)
    path = user_path(file.file)
    names = _names(file, card, says, student, key)
    outputs: list[int | None] = [0]
    if student.classes:
        places = {name: place for place, name in enumerate(names) if name is not None}
        outputs = [places.get(name) for name in student.classes]
    if names == student.classes:  # two of a known data set may have one name
        outputs = list(range(student.outputs))
    knows = np.array([output is not None for output in outputs])
    if student.classes and knows.sum() < min(FEWEST, len(student.classes)):
        raise DataError(
            f"expected a teacher of at least {FEWEST} of the classes {shown(list(student.classes))}, "
            f"{path} has outputs for {shown(list(names))}: say which of its outputs is which (classes)",
            key,
        )
    counts = None
    if file.label_counts is not None:
        counts = np.array([0.0 if o is None else file.label_counts[o] for o in outputs])
    adapted = _adapted(model, card, student, outputs)
    _check_logits(adapted, card, student, path, key)
    return ShelfTeacher(path, card.model, adapted, knows, counts)


def read_start(file: TeacherFile, student: Card, key: str = "start") -> nn.Module:
    """Read a student to start from; its outputs and inputs are the student's as they are.

    Raises
    ------
    DataError
        As :func:`read_teacher`, and if its classes or its normalisation are others.
    """
    card, model, _ = _read(file, student, key)
    problem = None
    if file.classes is not None:
        problem = "a student has the data's classes in their order; remove classes"
    if problem is None and card.classes != student.classes:
        problem = f"its classes are {shown(list(card.classes))}, expected {shown(list(student.classes))}"
    own_inputs = card.model.backbone is None and student.model.backbone is None
    if problem is None and own_inputs and (card.mean, card.std) != (student.mean, student.std):
        problem = "its inputs were normalised in another way; set data.normalise to its mean and std"
    if problem is not None:
        raise DataError(f"{user_path(file.file)} does not fit the data: {problem}", key)
    _check_logits(model, card, student, user_path(file.file), key)
    return model.train()


def examine_teachers(
    files: Sequence[TeacherFile], student: Card, key: str = "teachers.from"
) -> tuple[list[ShelfTeacher], list[Mistake]]:
    """Read teachers, and return what is wrong with any of them; a file that is named twice is."""
    found, mistakes = [], []
    first: dict[str, int] = {}
    for number, file in enumerate(files):
        own = f"{key}.{number}"
        try:
            before = first.setdefault(os.path.realpath(_path(file.file, own)), number)
            if before != number:
                raise DataError(
                    f"expected each file once, got {file.file} again, which is {key}.{before} already: "
                    "remove one of the two",
                    own,
                )
            found.append(read_teacher(file, student, own))
        except DataError as error:
            mistakes.append(Mistake(error.key, str(error)))
    return found, mistakes


def teachers_of(arm: Arm, student: Card) -> dict[int, ShelfTeacher]:
    """Return the teachers of an arm whose ``teachers.from`` names files: participant -> teacher.

    Nothing is trained for them, and nothing is sent by a training.

    Parameters
    ----------
    arm
        All keys resolved.
    student
        What its model learns: all that a server knows of the data.

    Raises
    ------
    ConfigError
        With everything that is wrong with any of them.
    """
    found, mistakes = _examine(arm, student)
    if mistakes:
        raise ConfigError("teachers.from", mistakes)
    return found


def problems_with_teachers(arm: Arm, student: Card) -> list[Mistake]:
    """Return what is wrong with the teachers of an arm that are named in ``teachers.from``."""
    return _examine(arm, student)[1]


def label_counts(teachers: Sequence[ShelfTeacher]) -> np.ndarray:
    """Return the examples of each class that each teacher was trained on, float64 [K, C].

    Where nobody says it, a teacher has one of each class that it knows, and none of the others.

    Raises
    ------
    KdfedError
        If some say it, and others do not: counts and ones do not compare.
    """
    silent = [str(teacher.path) for teacher in teachers if teacher.label_counts is None]
    if silent and len(silent) < len(teachers):
        raise KdfedError(
            f"expected label-counts of every teacher, or of none, got none of {shown(silent)}: name them"
        )
    return np.array(
        [one.knows.astype(np.float64) if one.label_counts is None else one.label_counts for one in teachers]
    )


def problem_with_method(
    method: KDMethod, teachers: Sequence[ShelfTeacher], student: ModelSettings
) -> str | None:
    """Say why a method cannot have these teachers for a student of this model; None where it can."""
    partial = [str(teacher.path) for teacher in teachers if not teacher.knows.all()]
    if method.needs_teachers and partial:
        return (
            f"method {method.method!r} works with the teachers themselves ({method.needs_teachers}), and "
            f"needs such as know every class; {shown(partial)} do not: use another method, or leave them out"
        )
    others = _not_alike(teachers, student)
    if method.init == "averaged" and others:
        return (
            "init 'averaged' needs teachers of the student's own model, inputs and classes, got others in "
            f"{shown(others)}; use init: common or random"
        )
    return None


def refusals_on_backbones(
    method: KDMethod, teachers: Sequence[ShelfTeacher], student: ModelSettings
) -> Iterator[Refusal]:
    """Refuse what cannot be had of teachers that read other inputs than the student."""
    others = [str(teacher.path) for teacher in teachers if teacher.settings.reads != student.reads]
    if not others:
        return
    problem = problem_with_backbones(method.transfer, (student, *(one.settings for one in teachers)))
    if problem is not None:
        yield Refusal(".transfer", f"{problem}: teachers in {shown(others)}")
    if method.needs_teachers:
        yield Refusal(
            ".method",
            f"expected teachers that read what the student does, got others in {shown(others)} with method "
            f"{method.method!r}: {method.needs_teachers}; use another method, or the same backbone",
        )
    if student.backbone is None:  # else its method says so itself
        yield from view_refusals(method, has_backbone=True)


# ----------------------------------------------------------------------------- small helpers


def _not_alike(teachers: Sequence[ShelfTeacher], student: ModelSettings) -> list[str]:
    """Return the files whose weights do not mean what a student's of this model do."""
    return [str(one.path) for one in teachers if not (one.is_plain and one.settings == student)]


def _examine(arm: Arm, student: Card) -> tuple[dict[int, ShelfTeacher], list[Mistake]]:
    assert arm.teachers.from_ is not None
    key = "teachers.from"
    try:
        files = model_files(arm.teachers.from_, key)
    except DataError as error:
        return {}, [Mistake(error.key, str(error))]
    if len(files) > arm.partition.participants:
        return {}, [
            Mistake(
                key,
                f"expected at most one model for each of the {arm.partition.participants} participants, got "
                f"{len(files)}; name fewer, or raise partition.participants",
            )
        ]
    found, mistakes = examine_teachers(files, student, key)
    if not mistakes and arm.start == "consolidated":
        problem = problem_with_method(arm.consolidation, found, arm.model)
        mistakes += [] if problem is None else [Mistake("consolidation.method", problem)]
        for refusal in refusals_on_backbones(arm.consolidation, found, arm.model):
            mistakes.append(Mistake(within(refusal, "consolidation").key, refusal.message))
        if arm.teachers.label_counts.send:
            try:
                label_counts(found)
            except KdfedError as error:
                mistakes.append(Mistake(key, str(error)))
    others = _not_alike(found, arm.model)
    if not mistakes and arm.start == "averaged" and others:
        mistakes.append(
            Mistake(
                "start",
                "'averaged' needs teachers of the federated model, with its inputs and classes, got others "
                f"in {shown(others)}; use start: consolidated, or leave them out of teachers.from",
            )
        )
    return dict(enumerate(found)), mistakes


def _read(file: TeacherFile, student: Card, key: str) -> tuple[Card, nn.Module, bool]:
    """Return what is known of a file's model, the model, and whether the file itself says it."""
    path = _path(file.file, key)
    state = read_state(path, key)
    card = card_in(file, key)
    if card is not None:
        problem = _other_task(card, student)
        if problem is not None:
            raise DataError(f"{path} does not fit the data: {problem}", key)
        return card, _read_own(file, card, path, key), True
    if file.model is None:
        raise DataError(
            f"{path} does not say which model its weights are of: name it, as "
            f"{{file: {path.name}, model: {{name: cnn}}}}, or {path.name}=cnn on the command line",
            key,
        )
    mean, std = student.mean, student.std
    if file.normalise is not None:
        mean, std = file.normalise.mean, file.normalise.std
        if (len(mean), len(std)) != (len(student.mean), len(student.std)):
            raise DataError(f"expected {len(student.mean)} mean and std, got {len(mean)}, {len(std)}", key)
    card = student.model_copy(update={"model": file.model, "mean": mean, "std": std})
    outputs = student.outputs if file.classes is None else len(file.classes)
    try:
        model = build_model(file.model, student.input_shape, outputs, seed=0)
    except ConfigError as error:
        reasons = "; ".join(mistake.message for mistake in error.mistakes)
        raise DataError(f"the model of {path} cannot be built: {reasons}", key) from error
    problem = problem_with_arrays(state, spec_of(state_of(model)))
    if problem is not None:
        raise DataError(
            f"the state dict in {path} does not fit {file.model.name!r} for inputs "
            f"{list(student.input_shape)} and {outputs} outputs: {problem}; name its own model, options and "
            "classes, or save it with the dtypes of its layers",
            key,
        )
    load_state(model, state)
    return card, model.eval(), False


def _path(text: str, key: str) -> Path:
    try:
        return user_path(text)
    except DataError as error:
        raise DataError(str(error), key) from error


def _check_logits(model: nn.Module, card: Card, student: Card, path: Path, key: str) -> None:
    """Refuse a model that answers with infinity or NaN to inputs that are all 0, or all 1."""
    shape = shape_read(card.model, student.input_shape)
    logits = predict(model, torch.stack([torch.zeros(shape), torch.ones(shape)]))
    if not bool(torch.isfinite(logits).all()):
        raise DataError(
            f"expected finite logits of the model in {path}, got infinity or NaN: its weights or its "
            "normalisation are too large, or too small; use another file",
            key,
        )


def _read_own(file: TeacherFile, card: Card, path: Path, key: str) -> nn.Module:
    """Return the model of a file that says what it is."""
    backbone = card.model.backbone
    name = card.model.name if backbone is None else backbone
    shipped = is_shipped(name) if backbone is None else is_shipped_backbone(name)
    if file.model is None and is_named(name) and not shipped:
        said = f"{path.name}={name}" if backbone is None else f"'{path.name}={{backbone: {name}}}'"
        raise DataError(
            f"{path} names somebody's code as its model, {shown(name)}, which would be imported and called: "
            f"if that is what you expect, say it too, as {said} on the command line",
            key,
        )
    if file.model is not None and (file.model.options or card.model.options) != card.model.options:
        raise DataError(
            f"expected a model with options {shown(file.model.options)} in {path}, got "
            f"{shown(card.model.options)}; remove the options: the file says them",
            key,
        )
    if file.normalise is not None:
        raise DataError(f"{path} says how its inputs are normalised; remove normalise", key)
    try:
        said = "" if file.model is None else file.model.backbone or file.model.name
        weights = card.model.weights if backbone is not None else ""
        return load(path, model=said, weights=weights, device="cpu").model
    except DataError as error:
        raise DataError(str(error), key) from error


def _names(file: TeacherFile, card: Card, says: bool, student: Card, key: str) -> tuple[str | None, ...]:
    """Return the student's class that each output of a teacher stands for."""
    path, outputs = user_path(file.file), card.outputs if says else len(file.classes or student.classes)
    counts = file.label_counts
    if counts is not None and (not student.classes or len(counts) != outputs):
        raise DataError(f"expected label-counts for the {outputs} outputs of {path}, got {len(counts)}", key)
    if file.classes is None:
        return _matched(card.classes, student, path, key)
    if not student.classes:
        raise DataError(f"classes of {path} have no effect in a regression; remove them", key)
    names = tuple(None if name is None else one_form([str(name)])[0] for name in file.classes)
    if len(names) != outputs:
        raise DataError(f"expected classes for the {outputs} outputs of {path}, got {len(names)}", key)
    for name in names:
        if name is not None and name not in student.classes:
            raise DataError(
                f"classes of {path}: the data have no class {shown(name)}{near(name, student.classes)}", key
            )
    return _matched(names, student, path, key)


def _matched(names: tuple[str | None, ...], student: Card, path: Path, key: str) -> tuple[str | None, ...]:
    """Return names of outputs, if each stands for one class: in known data sets some stand for two."""
    twice = repeated([name for name in names if name is not None]) or repeated(student.classes)
    if twice and names != student.classes:
        raise DataError(
            f"classes of {path}: expected each class once, got {shown(twice[0])} again; each output is one "
            "class of the data, or null",
            key,
        )
    return names


def _other_task(card: Card, student: Card) -> str | None:
    """Say how a model's task differs from the student's in what cannot be adapted; None where it does not."""
    if card.task != student.task:
        return f"it is a model of a {card.task}, expected one of a {student.task}"
    if card.input_shape != student.input_shape:
        are_images = len(card.input_shape) == len(student.input_shape) == 3
        change = "; set data.shape to convert images" if are_images else "; use data of its kind"
        return (
            f"it takes inputs of shape {list(card.input_shape)}, those of the data are "
            f"{list(student.input_shape)}{change}"
        )
    ours, theirs = (None if one.columns is None else one.columns.inputs for one in (student, card))
    if ours is not None and theirs is not None and ours != theirs:
        wanted = [theirs] if isinstance(theirs, str) else list(theirs)
        return f"its inputs are the columns {shown(wanted)}, in this order; set data.columns.inputs"
    return None


def _adapted(model: nn.Module, card: Card, student: Card, outputs: Sequence[int | None]) -> nn.Module:
    """Return a model that takes the student's inputs and has the student's outputs: itself where it does."""
    if card.model.backbone is not None:  # it has a normalisation of its own, below the cut
        card = card.model_copy(update={"mean": student.mean, "std": student.std})
    alike = (card.mean, card.std, card.label_mean, card.label_std) == (
        student.mean,
        student.std,
        student.label_mean,
        student.label_std,
    )
    if alike and list(outputs) == list(range(student.outputs)) and card.outputs == student.outputs:
        return model
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64)
        for values in (student.mean, student.std, card.mean, card.std)
    )
    scale, shift = (std / own_std).float(), ((mean - own_mean) / own_std).float()
    if card.model.backbone is not None:  # activations have channels of their own
        scale, shift = torch.ones(1), torch.zeros(1)
    return AdaptedTeacher(
        model,
        scale,
        shift,
        outputs,
        card.label_std / student.label_std,
        (card.label_mean - student.label_mean) / student.label_std,
    ).eval()
