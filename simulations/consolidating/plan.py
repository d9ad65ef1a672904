"""What a consolidation without federation is made of: read, and checked whole, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import nn

from kdfed.averaging import average_states
from kdfed.choosing import parts
from kdfed.config import Arm, cross_checks, experiment_type, parse_set, unrelated
from kdfed.config.checks import refusals_from
from kdfed.config.experiment import validate
from kdfed.config.mistakes import describe_all, related, remove_all
from kdfed.data import Dataset, PreparedData, Splits, load_source, prepare_dataset, split
from kdfed.data.dataset import class_names
from kdfed.device import resolve_device
from kdfed.errors import ConfigError, DataError, KdfedError, Mistake, RunFolderError, near
from kdfed.models import build_model, load_state, state_of
from kdfed.named import NamedError, is_named
from kdfed.paths import user_path
from kdfed.records import check_output
from kdfed.saved import Card
from kdfed.seeding import derive, numpy_generator
from kdfed.settings import DataSettings, DistillationSettings, ModelSettings, Settings, TeacherFile, is_table
from kdfed.shelf import (
    ShelfTeacher,
    card_in,
    examine_teachers,
    label_counts,
    problem_with_method,
    read_start,
    refusals_on_backbones,
)
from kdfed.thing import Thing, within
from simulations.consolidating.words import student_in, teachers_in
from simulations.experiments import FAMILIES, merge

KEYS = ("data", "consolidation", "device", "threads")
"""What ``--set`` can change, as in an experiment."""

SPLITS = {"test": 0.2, "evaluation": 0.0, "validation": 0.1}
"""The default of ``data.splits``: everything else is the transfer set."""

_WORDS = {"model": "--student", "data.source": "--transfer", "teachers": "TEACHER"}
"""Keys of an arm that are options here."""


@dataclass(frozen=True)
class Request:
    """What somebody wrote on the command line.

    Parameters
    ----------
    teachers, student
        See :mod:`simulations.consolidating.words`.
    transfer
        The data source.
    out
        The student's file.
    method
        The KD method; empty for the default.
    labels
        Whether the labels of the transfer set are used.
    teacher_model
        The model of teachers that say none; empty for none.
    assignments
        ``key=value`` for :data:`KEYS`.
    seed
        Of every draw.
    overwrite
        Whether files that are there may be replaced.
    """

    teachers: Sequence[str]
    student: str
    transfer: str
    out: Path
    method: str = ""
    labels: bool = False
    teacher_model: str = ""
    assignments: Sequence[str] = ()
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a consolidation needs, read and checked.

    Parameters
    ----------
    arm
        All keys resolved; its method is what distils.
    data
        Of the source. Without labels its splits hold a transfer set and a validation split alone.
    card
        What the student learns.
    teachers
        At least one.
    student
        As it starts.
    start
        What it starts from, for people.
    seed
        Of every draw.
    out
        The student's file.
    """

    arm: Arm
    data: PreparedData
    card: Card
    teachers: tuple[ShelfTeacher, ...]
    student: nn.Module
    start: str
    seed: int
    out: Path

    @property
    def page(self) -> Path:
        """The page's file."""
        return self.out.with_suffix(".html")

    @property
    def is_labelled(self) -> bool:
        """Whether the source says what its examples are."""
        return self.data.dataset.is_labelled

    @property
    def transfer(self) -> np.ndarray:
        """The transfer set, int64 indices: everything that is held out for nothing else."""
        splits = self.data.splits
        return np.sort(np.concatenate([splits.transfer, splits.train]))


def plan_of(request: Request) -> Plan:
    """Read what was asked for, and check it whole.

    Raises
    ------
    ConfigError
        With every mistake that can be seen at once.
    """
    given, mistakes = _assignments(request.assignments)
    files, wrong = teachers_in(request.teachers)
    chosen, more = student_in(request.student)
    default, others = (
        student_in(request.teacher_model, "--teacher-model") if request.teacher_model else (None, [])
    )
    mistakes += [*wrong, *more, *others, *_outputs(request, files, chosen)]
    if isinstance(default, TeacherFile):
        mistakes.append(Mistake("--teacher-model", f"expected a model, got the file {default.file}"))
    elif default is not None:
        files = [
            file if file.model or _card(file) else file.model_copy(update={"model": default})
            for file in files
        ]
    cards = [_card(file) for file in (*files, *([chosen] if isinstance(chosen, TeacherFile) else []))]
    own = cards[-1] if isinstance(chosen, TeacherFile) and cards else None
    model = _model_of(chosen, own, mistakes)
    values = _values(request, given, [card for card in cards if card is not None], own, len(files))
    arm, wrong = _arm({**values, "model": (model or ModelSettings()).model_dump(mode="json")})
    mistakes += unrelated(wrong, mistakes)
    unread = {"--transfer", "data", ""} & {mistake.key.partition(".")[0] for mistake in mistakes}
    if arm is None or unread:
        raise ConfigError("the command line", mistakes)
    own_cards = [card for card in cards[: len(files)] if card is not None]
    return _with_data(request, arm, files, chosen, given, own_cards, mistakes)


def _with_data(
    request: Request,
    arm: Arm,
    files: Sequence[TeacherFile],
    chosen: TeacherFile | ModelSettings | None,
    given: Mapping[str, Any],
    cards: Sequence[Card],
    known: Sequence[Mistake],
) -> Plan:
    """Read the data, the teachers and the student, and check what only shows then."""
    mistakes = list(known)
    try:
        resolve_device(arm.device)
    except DataError as error:
        mistakes.append(Mistake(error.key, str(error)))
    try:
        dataset, settings = _load(arm.data, _asks_for_label(given), cards)
        data = _prepared(dataset, settings)
    except DataError as error:
        raise ConfigError(
            "the command line", [*mistakes, _renamed(Mistake(error.key, str(error)))]
        ) from error
    own = _card(chosen) if isinstance(chosen, TeacherFile) else None
    if own is not None and own.task == "regression":
        data = replace(data, label_mean=own.label_mean, label_std=own.label_std)
    try:
        card = Card.of(arm.model, settings, data)
    except DataError as error:  # its backbone cannot be had; teachers are looked at all the same
        card = Card.of(ModelSettings(), settings, data)
        mistakes += unrelated([Mistake("--student", str(error))], mistakes)
    teachers, wrong = examine_teachers(files, card, "TEACHER")
    mistakes += wrong
    student: nn.Module | None = None
    start: str = arm.consolidation.init
    try:
        if any(mistake.key == "--student" for mistake in mistakes):
            pass
        elif isinstance(chosen, TeacherFile):
            student = read_start(chosen, card, "--student")
            start = str(user_path(chosen.file))
        else:
            seed = derive(request.seed, "init")
            student = build_model(arm.model, card.input_shape, card.outputs, seed)
    except DataError as error:
        mistakes.append(Mistake(error.key, str(error)))
    except ConfigError as error:
        mistakes += [Mistake("--student", mistake.message) for mistake in error.mistakes]
    if isinstance(chosen, TeacherFile) and arm.consolidation.init != "common":
        mistakes.append(Mistake("consolidation.init", "has no effect with a student from a file; remove it"))
    if not wrong:
        mistakes += _problems_with_teachers(arm, teachers)
    mistakes += list(_misfits(arm, data, dataset.is_labelled))
    if mistakes or student is None:
        raise ConfigError("the command line", mistakes)
    if arm.consolidation.init == "averaged":
        load_state(student, average_states([state_of(one.model) for one in teachers], [1.0] * len(teachers)))
    return Plan(arm, data, card, tuple(teachers), student, start, request.seed, request.out)


# ----------------------------------------------------------------------------- the command line


def _assignments(words: Sequence[str]) -> tuple[dict[str, Any], list[Mistake]]:
    try:
        given = parse_set(words)
    except ConfigError as error:
        return {}, list(error.mistakes)
    mistakes = [
        Mistake(str(key), f"expected one of {', '.join(KEYS)}{near(key, KEYS)}")
        for key in given
        if key not in KEYS
    ]
    data = given.get("data")
    if isinstance(data, Mapping) and "source" in data:
        mistakes.append(Mistake("data.source", "is --transfer here; remove it"))
    for key in ("data", "consolidation"):
        if key in given and not isinstance(given[key], Mapping):
            mistakes.append(Mistake(key, "expected a mapping of keys"))
            del given[key]
    return {key: value for key, value in given.items() if key in KEYS}, mistakes


def _outputs(
    request: Request, files: Sequence[TeacherFile], chosen: TeacherFile | ModelSettings | None
) -> Iterator[Mistake]:
    """Yield what is wrong with the files that are written."""
    out, key = request.out, "--out"
    if out.suffix != ".safetensors":
        yield Mistake(key, f"expected a file .safetensors, got {out}")
        return
    for file in [*files, *([chosen] if isinstance(chosen, TeacherFile) else [])]:
        with suppress(DataError, OSError):  # what cannot be read is told where it is read
            if user_path(file.file).samefile(out):
                yield Mistake(
                    key, f"expected another file than {file.file}, which is read; it would be replaced"
                )
                return
    for path in (out, out.with_suffix(".html")):
        try:
            check_output(path, overwrite=request.overwrite)
        except RunFolderError as error:
            yield Mistake(key, str(error))
            return


def _card(file: TeacherFile) -> Card | None:
    """Return what a file says of itself; what cannot be read is told where it is read whole."""
    try:
        return card_in(file)
    except DataError:
        return None


def _model_of(
    chosen: TeacherFile | ModelSettings | None, own: Card | None, mistakes: list[Mistake]
) -> ModelSettings | None:
    """Return the student's model: named, or that of the file it starts from."""
    if not isinstance(chosen, TeacherFile):
        return chosen
    if own is not None:
        return own.model
    if chosen.model is None and not mistakes:
        mistakes.append(
            Mistake(
                "--student",
                f"{chosen.file} does not say which model its weights are of, or cannot be read: name it, as "
                f"{Path(chosen.file).name}=cnn",
            )
        )
    return chosen.model


# ----------------------------------------------------------------------------- settings


def _values(
    request: Request, given: Mapping[str, Any], cards: Sequence[Card], own: Card | None, teachers: int
) -> dict[str, Any]:
    """Return the values of an arm; what nobody gives is what the files say."""
    first = own or (cards[0] if cards else None)
    data: dict[str, Any] = {"source": request.transfer, "splits": dict(SPLITS)}
    if first is not None:
        data["task"] = first.task
        if first.resized:
            data["shape"] = list(first.input_shape)
        if first.columns is not None and is_table(request.transfer):
            data["columns"] = first.columns.model_dump(mode="json")
    if own is not None:
        data["normalise"] = {"mean": list(own.mean), "std": list(own.std)}
    consolidation: dict[str, Any] = {"method": request.method or "vanilla"}
    if data.get("task") == "regression" and consolidation["method"] == "vanilla":
        consolidation |= {"ensemble": "mean-logits", "temperature": 1.0}
    values = merge({"data": data, "consolidation": consolidation}, given)
    if request.labels:
        values["consolidation"] = {**values["consolidation"], "labels": True}
    splits = values["data"].get("splits")
    if isinstance(splits, Mapping) and "transfer" not in splits:
        held = [share for share in splits.values() if isinstance(share, int | float)]
        values["data"]["splits"] = {**splits, "transfer": max(0.01, 0.95 * (1 - sum(held)))}
    return {
        **values,
        "start": "consolidated",
        "partition": {"kind": "uniform", "participants": max(teachers, 1)},
        "teachers": {"label-counts": {"send": _asks_for_counts(values["consolidation"])}},
    }


def _asks_for_counts(consolidation: Mapping[str, Any]) -> bool:
    """Whether the ensemble asks how many examples of each class a teacher has seen."""
    family, name = FAMILIES["consolidation.ensemble"], consolidation.get("ensemble")
    if not isinstance(name, str) or not (name in family.members or is_named(name)):
        return False
    try:
        return bool(family.find(name).needs_label_counts)
    except NamedError:
        return False


def _arm(values: Mapping[str, Any]) -> tuple[Arm | None, list[Mistake]]:
    """Return the arm without what is wrong with its keys, and that; None where nothing is left."""
    families, unknown = FAMILIES.open_to(values)
    mistakes = [Mistake(key, message) for key, message in unknown]
    kind, arm = experiment_type(families).arm_type, None
    pruned = json.loads(json.dumps(values, default=str))
    for _ in range(10):
        try:
            arm = validate(kind, pruned, families)
            break
        except ValidationError as error:
            problems = error.errors()
            mistakes += unrelated(describe_all(problems, pruned, kind), mistakes)
            remove_all(pruned, problems, families)
    if arm is None:
        return None, [_renamed(mistake) for mistake in mistakes]
    mistakes += unrelated(cross_checks(arm, [mistake.key for mistake in mistakes]), mistakes)
    if arm.data.splits.evaluation:
        got = arm.data.splits.evaluation
        mistakes.append(Mistake("data.splits.evaluation", f"expected 0, got {got:g}: no rounds are counted"))
    return arm, [_renamed(mistake) for mistake in mistakes]


def _renamed(mistake: Mistake) -> Mistake:
    """Say which option is meant by a key that is one here."""
    for key, word in _WORDS.items():
        if related(mistake.key, key) and mistake.key.startswith(key):
            return Mistake(word, mistake.message)
    return mistake


# ----------------------------------------------------------------------------- data


def _asks_for_label(given: Mapping[str, Any]) -> bool:
    """Whether a label column was named: then it must be there."""
    columns = given.get("data", {}).get("columns")
    return isinstance(columns, Mapping) and columns.get("label") is not None


def _load(settings: DataSettings, labelled: bool, cards: Sequence[Card]) -> tuple[Dataset, DataSettings]:
    """Load the examples; where the source does not say its classes, they are those of the teachers."""
    sets = dict.fromkeys(card.classes for card in cards)  # one set may have a name twice, see ImageNet
    names = next(iter(sets)) if len(sets) == 1 else tuple(dict.fromkeys(chain(*sets)))
    try:
        dataset = load_source(settings, labelled=labelled)
    except DataError as error:
        if error.key != "data.classes" or settings.classes is not None or not names:
            raise
        settings = settings.model_copy(update={"classes": names})
        dataset = load_source(settings, labelled=labelled)
    if settings.task == "classification" and not dataset.class_names:  # no labels, no classes
        given = () if settings.classes is None else class_names(settings, None)
        if not (given or names):
            raise DataError(
                f"{settings.source} and the teachers do not say their classes: name them", "data.classes"
            )
        dataset = replace(dataset, class_names=given or names)
    return dataset, settings


def _prepared(dataset: Dataset, settings: DataSettings) -> PreparedData:
    """Split the examples; without labels into a transfer set and what is measured on."""
    if dataset.is_labelled:
        return prepare_dataset(dataset, split(dataset, settings), settings)
    if settings.task == "regression":
        raise DataError(
            f"expected labels in {settings.source}: without them nothing says on which scale the student's "
            "numbers are; add the column, or use a source that has them"
        )
    order = numpy_generator(settings.splits.seed, "split").permutation(len(dataset)).astype(np.int64)
    held = max(1, round(settings.splits.validation * len(order)))
    if len(order) < 2:
        raise DataError(f"expected at least 2 examples in {settings.source}, got {len(order)}")
    none = np.empty(0, np.int64)
    splits = Splits(none, none, np.sort(order[:held]), np.sort(order[held:]), none)
    return prepare_dataset(dataset, splits, settings)


def _problems_with_teachers(arm: Arm, teachers: Sequence[ShelfTeacher]) -> Iterator[Mistake]:
    problem = problem_with_method(arm.consolidation, teachers, arm.model)
    if problem is not None:
        yield Mistake("--method", problem)
    for refusal in refusals_on_backbones(arm.consolidation, teachers, arm.model):
        yield Mistake(within(refusal, "consolidation").key, refusal.message)
    if arm.teachers.label_counts.send:
        try:
            label_counts(teachers)
        except KdfedError as error:
            yield Mistake("TEACHER", str(error))


def _misfits(arm: Arm, data: PreparedData, labelled: bool) -> Iterator[Mistake]:
    """Yield what goes together with these data not."""
    method, source = arm.consolidation, arm.data.source
    if not labelled:
        if method.labels:
            yield Mistake("--labels", f"expected labels in {source}, got none; leave it away")
        if "validation" in method.server_labels():
            yield Mistake(
                "consolidation",
                f"fits or chooses with labels (its ensemble, its search, or select: best), and {source} has "
                "none; use another ensemble or method, or select: last",
            )
    for where, part in parts(method, "consolidation"):
        if isinstance(part, Thing) and labelled:
            ask: Callable[[Thing], Iterator[Any]] = lambda thing: thing.misfits(arm, data)  # noqa: E731
            yield from (
                Mistake(one.key, one.message) for one in (within(r, where) for r in refusals_from(part, ask))
            )
        yield from _augmented(part, where, data)


def _augmented(part: Settings, where: str, data: PreparedData) -> Iterator[Mistake]:
    changes = part.augmentation if isinstance(part, DistillationSettings) else ()
    if changes and not data.dataset.is_images:
        yield Mistake(
            f"{where}.augmentation",
            f"expected images to {' and '.join(changes)}, got feature vectors; remove it",
        )
