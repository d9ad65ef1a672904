"""How the keys of one arm go together: what no single thing says of itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import product

from kdfed.choosing import parts
from kdfed.closed_form import BEFORE, WITH, ClosedFormSettings
from kdfed.config.experiment import Arm
from kdfed.config.mistakes import related
from kdfed.data.sources import task_problem
from kdfed.distill.method import soft_refusals, view_refusals
from kdfed.errors import Mistake, shown
from kdfed.family import Families, Family
from kdfed.models import check_model
from kdfed.named import NamedError, blamed, load_named, problem_with_options
from kdfed.settings import (
    DEVICES,
    DataSettings,
    ListenerSettings,
    ModelSettings,
    NormaliseSettings,
    OptimiserSettings,
    ServerDataSettings,
    Settings,
    TeacherSettings,
    held_data,
    is_table,
    kebab,
)
from kdfed.thing import Refusal, Thing, origin_of, within

TRAINING = (*OptimiserSettings.model_fields, "init")
"""Fields of ``teachers`` that say how they are trained."""

UNTRAINED = (
    "has no effect with teachers.from: nothing is trained; remove it, or set it in the arms that train"
)

Choice = tuple[str, str, str, bool, bool]
"""Method, transfer set, upload, labels, augmentation."""


def combinations(families: Families) -> dict[Choice, str | None]:
    """Return what consolidation can be asked for: None where it is valid, else why not."""
    methods, sets = families["consolidation.method"].members, families["consolidation.transfer"].members
    sets = {name: kind for name, kind in sets.items() if not kind.in_studies_only}
    found: dict[Choice, str | None] = {}
    for choice in product(methods, sets, ("weights", "logits"), (False, True), (False, True)):
        method, transfer, upload, labels, augmented = choice
        found[choice] = sets[transfer].refuses(upload, labels) or methods[method].refuses(upload, augmented)
    return found


def used_sections(arm: Arm) -> dict[str, Settings]:
    """Return the sections that an arm uses."""
    sections: dict[str, Settings] = {
        "data": arm.data,
        **({} if arm.server_data is None else {"server-data": arm.server_data}),
        "partition": arm.partition,
        "model": arm.model,
        "local": arm.local,
        "server": arm.server,
    }
    if arm.start in ("consolidated", "averaged"):
        sections["teachers"] = arm.teachers
    if arm.start == "consolidated":
        sections["consolidation"] = arm.consolidation
    if arm.start == "server":
        sections["server-fit"] = arm.server_fit
    if arm.closed_form is not None:
        sections["closed-form"] = arm.closed_form
    return sections


def used_parts(arm: Arm) -> list[tuple[str, Settings]]:
    """Return all settings that an arm uses, nested ones included, with their dotted keys."""
    return [part for key, settings in used_sections(arm).items() for part in parts(settings, key)]


def momentum_problem(settings: OptimiserSettings) -> str | None:
    """Say what is wrong with a momentum that the optimiser does not have; None when all is well."""
    if settings.optimizer == "sgd" or settings.momentum == 0:
        return None
    return (
        f"expected 0 with optimizer {settings.optimizer!r}, which has no such option, got "
        f"{settings.momentum}; use optimizer: sgd or remove it"
    )


def data_problems(data: DataSettings) -> Iterator[tuple[str, ...]]:
    """Yield what does not go together in a data section: the key, the message, keys that it depends on."""
    splits = data.splits
    shares = (splits.test, splits.evaluation, splits.validation, splits.transfer)
    total = sum(share for share in shares if not isinstance(share, str))
    if total >= 1 and not data.of_devices:
        yield "splits", f"expected shares that leave examples for participants, got {total:g} of them"
    if data.columns is not None and not (is_table(data.source) or data.of_devices):
        yield "columns", _NO_COLUMNS.format(shown(data.source)), "source"
    problem = task_problem(data)
    if problem is not None:
        yield "task", problem, "source"
    if data.task == "regression" and data.classes is not None:
        yield "classes", "has no effect with data.task 'regression'; remove it", "task"
    if isinstance(data.classes, tuple) and len(set(data.classes)) != len(data.classes):
        yield "classes", "expected distinct names; remove the repeated ones"
    normalise = data.normalise
    if isinstance(normalise, NormaliseSettings) and len(normalise.mean) != len(normalise.std):
        found = f"{len(normalise.mean)} mean and {len(normalise.std)} std"
        yield "normalise", f"expected as many std as mean, got {found}"


_NO_COLUMNS = "goes with parquet:, csv: and hf: sources, got {}; remove it"


def devices_problems(arm: Arm) -> Iterator[Refusal]:
    """Yield what an arm lacks whose participants are devices with data of their own, or has beside it."""
    data, server = arm.data, arm.server_data
    if not data.of_devices:
        if server is not None:
            yield Refusal(
                "server-data",
                f"has no effect with data.source {shown(data.source)}: the server's examples are those of "
                f"data.splits; remove it, or set data.source: {DEVICES}",
                ("data.source",),
            )
        for key in ("quorum", "enough", "grace"):
            if getattr(arm.server, key) is not None:
                yield Refusal(
                    f"server.{key}",
                    f"has no effect with data.source {shown(data.source)}: nobody is missing in a "
                    "simulation; remove it",
                    ("data.source",),
                )
        return
    if arm.partition.kind != "devices":
        yield Refusal(
            "partition.kind",
            f"expected 'devices' with data.source '{DEVICES}', got {arm.partition.kind!r}: devices have "
            "their examples already; set it",
            ("data.source",),
        )
    if data.task == "classification" and data.classes is None:
        yield Refusal(
            "data.classes",
            "expected the names of the classes in label order (or their number), which no device decides; "
            "set it",
            ("data.source", "data.task"),
        )
    if server is None:
        yield Refusal(
            "server-data",
            "expected the server's own examples, {source: ..., splits: ...}, on which rounds are counted and "
            f"teachers are distilled, beside data.source '{DEVICES}', got none; set it",
            ("data.source",),
        )
    if arm.rounds.horizon == "auto":
        yield Refusal(
            "rounds.horizon",
            f"expected a number with data.source '{DEVICES}': 'auto' runs the baseline in a simulation first",
            ("data.source",),
        )


def server_data_problems(server: ServerDataSettings, data: DataSettings) -> Iterator[tuple[str, ...]]:
    """Yield what does not go together in ``server-data``: as :func:`data_problems`."""
    if server.source == DEVICES:
        yield "source", f"expected a source that the server can read, got '{DEVICES}'; name another"
        return
    splits = server.splits
    shares = (splits.test, splits.evaluation, splits.validation, splits.transfer)
    total = sum(share for share in shares if not isinstance(share, str))
    if total > 1 + 1e-9:
        yield "splits", f"expected shares of at most 1 in all, got {total:g}"
    if server.columns is not None and not is_table(server.source):
        yield "columns", _NO_COLUMNS.format(shown(server.source)), "source"
    problem = task_problem(held_data(data, server))
    if problem is not None:
        yield "source", problem, "source"


def regression_problem(family: Family[Thing], thing: type[Thing], name: str) -> str | None:
    """Say why a regression cannot have something; None where it can."""
    if not thing.needs_classes:
        return None
    allowed = " or ".join(name for name, kind in family.members.items() if not kind.needs_classes)
    return f"expected {allowed} with data.task 'regression', got {name!r}: {thing.needs_classes}; set it"


def cross_checks(arm: Arm, known: Collection[str] = ()) -> list[Mistake]:
    """Return the mistakes that lie in how keys of one arm go together.

    Parameters
    ----------
    arm
        An arm whose single keys are valid. Sections that its start does not use are not checked.
    known
        Keys that were wrong, and are left out of the arm: what depends on them is not checked.
    """
    mistakes: list[Mistake] = []
    for refusal in _refusals(arm):
        if not any(related(read, bad) for read in (refusal.key, *refusal.depends) for bad in known):
            mistakes.append(Mistake(refusal.key, refusal.message))
    return list(dict.fromkeys(mistakes))


def _refusals(arm: Arm) -> Iterator[Refusal]:
    everything = used_parts(arm)
    for key, part in everything:
        problem = check_model(part) if isinstance(part, ModelSettings) else None
        if problem is not None:
            yield Refusal(key, problem)
    for key, part in everything:
        problem = momentum_problem(part) if isinstance(part, OptimiserSettings) else None
        if problem is not None:
            yield Refusal(f"{key}.momentum", problem, (f"{key}.optimizer",))
    for key, part in everything:
        if isinstance(part, DataSettings):
            for name, message, *others in data_problems(part):
                yield Refusal(f"{key}.{name}", message, tuple(f"{key}.{other}" for other in others))
    if arm.server_data is not None:
        for name, message, *_ in server_data_problems(arm.server_data, arm.data):
            yield Refusal(f"server-data.{name}", message, ("data.task",))
    yield from devices_problems(arm)
    for index, listener in enumerate(arm.listeners):
        problem = _listener_problem(listener)
        if problem is not None:
            yield Refusal(f"listeners.{index}", problem)
    if arm.data.task == "regression":
        yield from _need_classes(arm)
    for key, part in everything:
        if isinstance(part, Thing):
            refusals = refusals_from(part, lambda part: part.refusals(arm))
            yield from (within(refusal, key) for refusal in refusals)
    if arm.start in ("consolidated", "averaged"):
        yield from _check_teachers(arm)
    if arm.closed_form is not None:
        yield from _check_closed_form(arm, arm.closed_form)
    if arm.local.trainable != "all":
        yield from _check_trainable(arm)
    changes = arm.server_fit.augmentation
    if arm.start == "server" and arm.model.backbone is not None and changes not in ("auto", ()):
        yield Refusal(
            "server-fit.augmentation",
            "expected none with a backbone, whose frozen part is computed once for each image, got "
            f"{' and '.join(changes)}; remove it",
            ("model",),
        )


def refusals_from(thing: Thing, ask: Callable[[Thing], Iterator[Refusal]]) -> list[Refusal]:
    """Return what a thing refuses; where a user's class raises instead, that is a refusal too."""
    name = origin_of(thing)
    try:
        with blamed(name, f"expected {name} to say what it refuses"):
            given = list(ask(thing))
            refusals = [Refusal(*refusal) if isinstance(refusal, tuple) else refusal for refusal in given]
            for refusal in refusals:
                if not isinstance(refusal, Refusal) or not all(
                    isinstance(text, str) for text in (refusal.key, refusal.message, *refusal.depends)
                ):
                    raise TypeError(f"said {shown(refusal)}, which is no kdfed.thing.Refusal of texts")
            return refusals
    except NamedError as error:
        return [Refusal("", str(error))]


def _listener_problem(settings: ListenerSettings) -> str | None:
    """Say why a name makes no listener; what a function returns is only seen when it is called."""
    problem = problem_with_options(settings.name, settings.options)
    if problem is not None:
        return problem
    found = load_named(settings.name)
    bases = found.__mro__ if isinstance(found, type) else ()
    if bases and not any((base.__module__, base.__name__) == _LISTENER for base in bases):
        return f"expected {shown(settings.name)} to be a class derived from {'.'.join(_LISTENER)}"
    return None


_LISTENER = "kdfed.listeners", "Listener"  # which imports this module's package


def _need_classes(arm: Arm) -> Iterator[Refusal]:
    """Yield what is chosen and needs classes."""
    for key, part in used_parts(arm):
        for family in arm.families:
            if isinstance(part, family.base):
                problem = regression_problem(family, type(part), getattr(part, family.tag))
                if problem is not None:
                    yield Refusal(f"{key}.{family.tag}", problem, ("data.task", key))


def _check_teachers(arm: Arm) -> Iterator[Refusal]:
    """Yield what the teachers cannot be asked for."""
    teachers, consolidation = arm.teachers, arm.consolidation
    if teachers.from_ is not None:
        yield from _check_shelf(arm)
    if isinstance(teachers.count, int) and teachers.count > arm.partition.participants:
        yield Refusal(
            "teachers.count",
            f"expected at most the {arm.partition.participants} participants, got {teachers.count}",
            ("partition.participants",),
        )
    send = "teachers.label-counts.send"
    if teachers.label_counts.epsilon is not None and not teachers.label_counts.send:
        yield Refusal(
            "teachers.label-counts.epsilon",
            "has no effect unless send is true; set it or remove epsilon",
            (send,),
        )
    ensemble = getattr(consolidation, "ensemble", None) if arm.start == "consolidated" else None
    if teachers.label_counts.send and not getattr(ensemble, "needs_label_counts", False):
        got = f"method {consolidation.method!r}" if ensemble is None else f"ensemble {ensemble.ensemble!r}"
        asking = arm.families["consolidation.ensemble"].members.items()
        names = " or ".join(repr(name) for name, kind in asking if kind.needs_label_counts)
        yield Refusal(
            send,
            f"tells what participants hold, and only start: consolidated with the ensemble {names} uses it, "
            f"got start: {arm.start} with {got}; set it to false",
            ("consolidation.ensemble", "consolidation.method"),
        )
    averaged = arm.start == "averaged" or consolidation.init == "averaged"
    where = "start" if arm.start == "averaged" else "consolidation.init"
    if averaged and teachers.upload != "weights":
        yield Refusal(
            where,
            f"'averaged' needs teachers.upload 'weights', got {teachers.upload!r}",
            ("teachers.upload",),
        )
    if averaged and teachers.model is not None and teachers.model != arm.model:
        yield Refusal(
            where,
            "'averaged' needs teachers of the federated model's architecture; remove teachers.model",
            ("model", "teachers.model"),
        )


def _check_shelf(arm: Arm) -> Iterator[Refusal]:
    """Yield what cannot be asked of teachers that exist already."""
    teachers, source = arm.teachers, "teachers.from"
    for key, given, wanted, why in (
        ("count", teachers.count, "all", "every teacher that it names takes part"),
        ("upload", teachers.upload, "weights", "it names models"),
        ("model", teachers.model, None, "each file, or its entry, says its model"),
        ("label-counts.epsilon", teachers.label_counts.epsilon, None, "nobody is asked for counts"),
    ):
        if given != wanted:
            yield Refusal(f"teachers.{key}", f"has no effect with {source}: {why}; remove it", (source,))
    nothing = TeacherSettings()
    for name in TRAINING:
        if getattr(teachers, name) != getattr(nothing, name):
            yield Refusal(f"teachers.{kebab(name)}", UNTRAINED, (source,))


def _check_trainable(arm: Arm) -> Iterator[Refusal]:
    """Yield why a round cannot train a part of the model alone."""
    key, part = "local.trainable", arm.local.trainable
    if arm.server.whole_models:
        yield Refusal(
            key,
            f"expected 'all' with strategy {arm.server.strategy!r}, which needs whole models, got {part!r}",
            ("server.strategy",),
        )
    if arm.local.personal_model(arm.model) is not None:
        yield Refusal(
            key,
            f"expected 'all' with mode {arm.local.mode!r}, which trains a second model, got {part!r}",
            ("local.mode",),
        )
    if part == "body" and arm.model.backbone is not None and arm.model.trainable == "head":
        yield Refusal(
            key,
            "expected 'all' or 'head' with model.trainable 'head', of which nothing but the head is trained, "
            "got 'body'",
            ("model",),
        )


def _check_closed_form(arm: Arm, settings: ClosedFormSettings) -> Iterator[Refusal]:
    """Yield what cannot be asked of a head in closed form."""
    horizon, late = arm.rounds.horizon, [number for number in settings.at if isinstance(number, int)]
    if late and isinstance(horizon, int) and max(late) > horizon:
        yield Refusal(
            "closed-form.at",
            f"expected rounds up to the last, {horizon} (rounds.horizon), got {max(late)}; lower it",
            ("rounds.horizon",),
        )
    student_starts = arm.start == "consolidated" and arm.consolidation.init == "common"
    if settings.before_teachers and arm.start not in ("consolidated", "averaged"):
        yield Refusal(
            "closed-form.at",
            f"'{BEFORE}' needs teachers, start: consolidated or averaged, got start: {arm.start}; use 0",
            ("start",),
        )
    elif settings.before_teachers and not (settings.teacher or arm.teachers.start_common or student_starts):
        yield Refusal(
            "closed-form.at",
            f"'{BEFORE}' has no effect where neither teachers that are trained nor the student start with "
            "it; use 0, or set teachers.init or consolidation.init to common",
            ("start", "teachers.init", "teachers.from", "consolidation.init", "closed-form.teacher"),
        )
    if settings.with_teachers:
        yield from _check_with_teachers(arm, settings)
    if settings.distillation is not None:
        for refusal in (
            *soft_refusals(settings.distillation, arm.data.task),
            *view_refusals(settings.distillation, arm.model.backbone is not None),
        ):
            yield within(refusal, "closed-form.distillation")
    if settings.teacher and not (settings.before_teachers and arm.start == "consolidated"):
        yield Refusal(
            "closed-form.teacher",
            f"needs start: consolidated, and '{BEFORE}' in closed-form.at; set both or remove it",
            ("start", "closed-form.at"),
        )
    if settings.teacher and arm.teachers.upload != "weights":
        yield Refusal(
            "closed-form.teacher",
            f"needs teachers.upload 'weights', got {arm.teachers.upload!r}: it is a model on the server",
            ("teachers.upload",),
        )


def _check_with_teachers(arm: Arm, settings: ClosedFormSettings) -> Iterator[Refusal]:
    """Yield what keeps the statistics of the common initial weights from coming with the teachers."""
    if arm.start not in ("consolidated", "averaged"):
        yield Refusal(
            "closed-form.at",
            f"'{WITH}' needs teachers, start: consolidated or averaged, got start: {arm.start}; use 0",
            ("start",),
        )
    elif not arm.teachers.start_common or arm.teachers.model is not None:
        yield Refusal(
            "closed-form.at",
            f"'{WITH}' needs teachers that are trained from the common initial weights; use 0, or set "
            "teachers.init to common and remove teachers.model and teachers.from",
            ("teachers.init", "teachers.from", "teachers.model", "start"),
        )
    also = [when for when in settings.at if when in (0, 1, BEFORE)]
    if also:
        yield Refusal(
            "closed-form.at",
            f"'{WITH}' solves for the heads of the common initial weights and, in round 1, of the start; "
            f"remove {' and '.join(map(repr, also))}",
        )
    if arm.rounds.horizon == 0:
        yield Refusal(
            "closed-form.at",
            f"'{WITH}' needs round 1, in which the start's head is solved for, got rounds.horizon 0",
            ("rounds.horizon",),
        )


def server_labels(arm: Arm, validation: int, transfer: int) -> int:
    """Return how many labelled examples of the server an arm fits or chooses with.

    Counted is what the start, the strategy or a stop reads; measuring is not. 0 is an arm whose server needs
    no label.

    Parameters
    ----------
    arm
        All keys resolved.
    validation, transfer
        Examples of these splits.
    """
    used = set(arm.server.server_labels())
    if arm.start == "consolidated":
        used |= arm.consolidation.server_labels()
    if arm.closed_form is not None:
        used |= arm.closed_form.server_labels()
    if arm.start == "server" and arm.server_fit.labels:
        used.add("transfer")
    if arm.start == "server" or arm.rounds.stop_at_target or arm.rounds.plateau.stop:
        used.add("validation")
    return validation * ("validation" in used) + transfer * ("transfer" in used)
