"""The study file, as frozen pydantic models, and the schema that families make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, ValidationError, create_model

from kdfed.choosing import Choosing, gathered, parts
from kdfed.config import merge, parse_set, read_mapping, unrelated
from kdfed.config.checks import data_problems, momentum_problem, refusals_from, regression_problem
from kdfed.config.mistakes import describe_all
from kdfed.distill import KDMethod
from kdfed.ensembles import AnyEnsemble, MeanProbabilities
from kdfed.errors import ConfigError, Mistake, shown
from kdfed.family import Families
from kdfed.models import check_model
from kdfed.named import NamedError, search_in
from kdfed.partitions import PartitionBase
from kdfed.settings import (
    DataSettings,
    Distinct,
    Fraction,
    ModelSettings,
    OptimiserSettings,
    Passes,
    PositiveInt,
    Rate,
    Settings,
    SplitSettings,
    TeacherSettings,
    Temperature,
    kebab,
)
from kdfed.task import temperature_problem
from kdfed.thing import within
from kdfed.transfer_sets import DrawnSet, TransferSet
from kdfed.transfer_sets.transfer_set import problem_with_backbones
from simulations.experiments import FAMILIES


class StudySplits(SplitSettings):
    """Which share of the data is held out before it is dealt to the models.

    A study counts no rounds, so it holds out no evaluation split.
    """

    test: Fraction | Literal["official"] = 0.15
    """Share of all examples, or ``official`` for the test part that the source itself has. Gains are read on
    it."""
    evaluation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """0, because a study counts no rounds."""
    validation: Fraction = 0.10
    """Share of all examples (with ``test: official``, of those outside the test part), on which searches
    choose."""
    transfer: Fraction = 0.15
    """Share, counted like ``validation``, on which models are distilled."""


class StudyData(DataSettings):
    """Where the examples come from."""

    splits: StudySplits = StudySplits()
    """The held-out shares."""


class Pretraining(OptimiserSettings):
    """How the models are trained on their own data, before any distillation."""

    epochs: Passes = 20
    """Passes over a model's own examples."""


class StudyDistillation(OptimiserSettings, Choosing):
    """How a student is trained on the transfer set, whatever the method."""

    epochs: Passes = 20
    """Passes over the transfer set."""
    batch_size: PositiveInt = 32
    """Examples a step."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the epochs; ``cosine`` decays to 0."""
    ensemble: AnyEnsemble = MeanProbabilities()
    """How several teachers' outputs become one target (vanilla and tuned)."""


class Search(Settings):
    """What is searched on the validation split."""

    temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1), Distinct] = (
        1.0, 2.0, 4.0, 8.0,
    )  # fmt: skip
    """Temperatures that tuned KD tries."""
    weights: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1), Distinct] = (
        0.25, 0.5, 0.75, 1.0,
    )  # fmt: skip
    """Weights that tuned KD tries; on an unlabelled transfer set 1 alone."""
    rates: Annotated[tuple[Rate, ...], Distinct] = ()
    """Factors of the learning rate that every other method tries, for the table in which all methods have
    equally many trials. Default: that table is left out."""
    passes: Annotated[tuple[Rate, ...], Field(min_length=1), Distinct] = (1.0,)
    """Factors of the number of epochs that they try, each with each rate."""


class Centre(Settings):
    """The condition from which other factors vary one at a time."""

    teachers: PositiveInt = 1
    """Teachers of the student; with one, a pair of models."""
    transfer: str = "public"
    """The transfer set."""
    labels: bool = True
    """Whether its labels are used."""
    images: PositiveInt | None = None
    """How many of its examples. Default: all."""


class Vary(Settings):
    """Other values of the factors, each tried with everything else at the centre."""

    teachers: Annotated[tuple[PositiveInt, ...], Distinct] = ()
    """Numbers of teachers."""
    transfer: Annotated[tuple[str, ...], Distinct] = ()
    """Transfer sets."""
    labels: Annotated[tuple[bool, ...], Distinct] = ()
    """With or without labels."""
    images: Annotated[tuple[PositiveInt, ...], Distinct] = ()
    """Sizes of the transfer set."""
    models: tuple[ModelSettings, ...] = ()
    """Architectures, of teachers and student."""
    distributions: tuple[str, ...] = ()
    """Names of the distributions on which these factors vary. Default: all."""


class StudySettings(Settings):
    """A whole study file; :func:`study_type` makes what reads one.

    Beside these keys it has those of the transfer sets, such as ``proxy`` and ``generator``.
    """

    families: ClassVar[Families]
    """What is compared was chosen from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """Letters, digits, dot, hyphen, underscore."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1), Distinct] = (
        0, 1, 2,
    )  # fmt: skip
    """One of each cell; a seed varies partition, initial weights and orders together."""
    data: StudyData = StudyData()
    """Where the examples come from."""
    model: ModelSettings = ModelSettings()
    """Architecture of teachers and student."""
    pretraining: Pretraining = Pretraining()
    """Before distillation."""
    distillation: StudyDistillation = StudyDistillation()
    """On the transfer set."""
    search: Search = Search()
    """On the validation split."""
    temperature: Temperature = 4.0
    """Temperature of the methods that are not tuned."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the methods that are not tuned, on labelled transfer sets."""
    methods: Annotated[tuple[str, ...], Field(min_length=1), Distinct] = (
        "vanilla", "tuned", "mutual", "partitioned",
    )  # fmt: skip
    """What is compared."""
    distributions: Annotated[dict[str, PartitionBase], Field(min_length=1)]
    """Who holds what, by name; the number of participants is that of the models."""
    centre: Centre = Centre()
    """Where the other factors stand."""
    vary: Vary = Vary()
    """Where else they are put."""

    def method(self, name: str) -> type[KDMethod]:
        """Return what a KD method's name stands for."""
        return cast("type[KDMethod]", self.families["consolidation.method"].find(name))

    def transfer_set(self, name: str, images: int | None = None) -> TransferSet:
        """Return a transfer set with the keys that the study gives it.

        Parameters
        ----------
        name
            Its name.
        images
            How many examples, where it is drawn. Default: as many as the transfer split has.
        """
        kind = self._set(name)
        own = {
            key: getattr(self, key, None) for key in kind.model_fields if key not in ("transfer", "images")
        }
        if issubclass(kind, DrawnSet):
            own["images"] = images
        return kind(transfer=name, **{key: value for key, value in own.items() if value is not None})

    def is_labelled(self, name: str) -> bool:
        """Tell whether a transfer set has labels of the task."""
        return self._set(name).labelled

    def _set(self, name: str) -> type[TransferSet]:
        return cast("type[TransferSet]", self.families["consolidation.transfer"].find(name))


@lru_cache(maxsize=8)
def study_type(families: Families) -> type[StudySettings]:
    """Return the schema of studies that can choose from these families."""
    methods, sets = families["consolidation.method"].members, families["consolidation.transfer"].members
    method: Any = Literal[tuple(methods)]
    transfer: Any = Literal[tuple(sets)]
    partition: Any = families["partition.kind"].union
    distillation = families.opened(StudyDistillation)
    centre = _narrowed(Centre, transfer=transfer)
    vary = _narrowed(Vary, transfer=tuple[transfer, ...])
    fields: dict[str, Any] = {
        "methods": _field(StudySettings, "methods", tuple[method, ...]),
        "distributions": _field(StudySettings, "distributions", dict[str, partition]),
        "centre": (centre, centre()),
        "distillation": (distillation, distillation()),
        "vary": (vary, vary()),
    }
    for kind in sets.values():
        for name, field in kind.model_fields.items():
            if name in StudySettings.model_fields:
                raise NamedError(
                    f"expected transfer set {kind.__name__} to have keys that a study has not, got {name!r}"
                )
            if name not in ("transfer", "images"):
                fields[name] = (field.annotation | None, Field(default=None, description=field.description))
    study: Any = create_model("StudySettings", __base__=StudySettings, __module__=__name__, **fields)
    study.families = families
    return cast("type[StudySettings]", study)


def _narrowed(model: type[Settings], **types: Any) -> Any:
    fields = {name: _field(model, name, kind) for name, kind in types.items()}
    return create_model(model.__name__, __base__=model, __module__=__name__, **fields)


def _field(model: type[Settings], name: str, kind: Any) -> Any:
    field = model.model_fields[name]
    kind = Annotated[(kind, *field.metadata)] if field.metadata else kind
    default = ... if field.is_required() else field.default
    return kind, Field(default=default, description=field.description)


def load_study(path: Path, assignments: list[str] | None = None) -> StudySettings:
    """Read a study file, replace keys, check everything.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    search_in(path.absolute().parent)
    values = merge(read_mapping(path), parse_set(assignments or []), FAMILIES)
    families, unknown = families_of(values)
    try:
        kind = study_type(families)
    except NamedError as error:
        raise ConfigError(str(path), [Mistake("", str(error))]) from error
    try:
        study = kind.model_validate_json(
            json.dumps(gathered(kind, values), default=str), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        known = [Mistake(*problem) for problem in unknown]
        mistakes = known + unrelated(describe_all(error.errors(), values, kind), known)
        raise ConfigError(str(path), mistakes) from error
    mistakes = [Mistake(*problem) for problem in unknown] or _check(study)
    if mistakes:
        raise ConfigError(str(path), mistakes)
    return study


def families_of(values: Mapping[str, Any]) -> tuple[Families, list[tuple[str, str]]]:
    """Return the families with whatever a study names of a user's; see :meth:`Families.open_to`."""

    def at(*path: str) -> Any:
        found: Any = values
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    distributions = at("distributions")
    chosen = [
        *((f"distributions.{name}.kind", "partition.kind", at("distributions", name, "kind"))
          for name in (distributions if isinstance(distributions, Mapping) else ())),
        ("methods", "consolidation.method", at("methods")),
        ("centre.transfer", "consolidation.transfer", at("centre", "transfer")),
        ("vary.transfer", "consolidation.transfer", at("vary", "transfer")),
        ("distillation.ensemble", "consolidation.ensemble", at("distillation", "ensemble")),
    ]  # fmt: skip
    return FAMILIES.including_all(
        (key, FAMILIES[family], name)
        for key, family, given in chosen
        for name in (given if isinstance(given, list) else [given])
        if isinstance(name, str)
    )


def read_study(text: str) -> StudySettings:
    """Read a checked study that was written as JSON."""
    values = json.loads(text)
    kind = study_type(families_of(values)[0])
    return kind.model_validate_json(json.dumps(gathered(kind, values)))


def _check(study: StudySettings) -> list[Mistake]:
    mistakes: list[Mistake] = []

    def wrong(key: str, message: str) -> None:
        mistakes.append(Mistake(key, message))

    for key, model in (
        ("model", study.model),
        *((f"vary.models.{i}", m) for i, m in enumerate(study.vary.models)),
    ):
        problem = check_model(model)
        if problem is not None:
            wrong(key, problem)
    for section, settings in (("pretraining", study.pretraining), ("distillation", study.distillation)):
        problem = momentum_problem(settings)
        if problem is not None:
            wrong(f"{section}.momentum", problem)
    mistakes += [Mistake(f"data.{key}", message) for key, message, *_ in data_problems(study.data)]
    if study.data.splits.evaluation:
        wrong(
            "data.splits.evaluation",
            f"expected 0, got {study.data.splits.evaluation:g}: a study counts no rounds, and reads its "
            "gains on the test split; remove it",
        )
    ensemble = study.distillation.ensemble
    if ensemble.needs_label_counts or ensemble.needs_validation:
        wrong(
            "distillation.ensemble",
            f"expected an ensemble of logits alone, got {ensemble.ensemble!r}: a study's teachers tell no "
            "label counts, and answer for the transfer set only",
        )
    if study.data.task == "regression":
        mistakes += _check_regression(study)
    search = study.search
    if study.temperature not in search.temperatures:
        wrong("temperature", f"expected one of search.temperatures, got {study.temperature:g}; add it there")
    if study.weight not in search.weights:
        wrong("weight", f"expected one of search.weights, got {study.weight:g}; add it there")
    if 1.0 not in search.weights and _has_unlabelled(study):
        wrong("search.weights", "expected 1 among them: a transfer set without labels has no other; add it")
    if search.rates and len(search.rates) * len(search.passes) != len(search.temperatures) * len(
        search.weights
    ):
        wrong(
            "search.rates",
            f"expected as many pairs with passes as temperatures x weights, {len(search.temperatures)} x "
            f"{len(search.weights)}, got {len(search.rates)} x {len(search.passes)}",
        )
    for key, factors, of, most in (
        ("rates", search.rates, "lr", 1000),
        ("passes", search.passes, "epochs", 10**6),
    ):
        for product in (getattr(study.distillation, of) * factor for factor in factors):
            if not 0 < product <= most:
                wrong(
                    f"search.{key}",
                    f"times distillation.{of}: expected above 0, at most {most}, got {product:g}",
                )
        if search.rates and 1.0 not in factors:
            wrong(f"search.{key}", f"expected 1 among them, got {list(factors)}; add it")
    unlabelled = not study.is_labelled(study.centre.transfer)
    if unlabelled and study.centre.labels:
        wrong("centre.labels", f"expected false with transfer {study.centre.transfer!r}, which has no labels")
    if unlabelled and True in study.vary.labels:
        wrong(
            "vary.labels",
            f"expected false alone with transfer {study.centre.transfer!r}, which has no labels",
        )
    mistakes += _check_transfer_sets(study)
    for name in study.vary.distributions:
        if name not in study.distributions:
            wrong("vary.distributions", f"expected names of distributions, got {shown(name)}")
    shared = {*type(study.distillation).model_fields, "labels", "temperature", "weight"}
    for name in study.methods:
        needed = [key for key, field in study.method(name).model_fields.items() if field.is_required()]
        lacking = [kebab(key) for key in needed if key not in shared]
        if lacking:
            keys = ", ".join(lacking)
            wrong(
                "methods", f"expected {name!r} to need no keys of its own in a study; give {keys} a default"
            )
        searched = study.method(name).searches
        if searched and searched not in study.methods:
            wrong("methods", f"expected {searched!r} beside {name!r}, which is one of its trials; add it")
    return mistakes


def _check_transfer_sets(study: StudySettings) -> Iterator[Mistake]:
    """Yield what is wrong with the keys of transfer sets, and with keys of those that the study has not."""
    used = {study.centre.transfer, *study.vary.transfer}
    sets = study.families["consolidation.transfer"].members
    owners: dict[str, list[str]] = {}
    for name, kind in sets.items():
        for key, field in kind.model_fields.items():
            if key in ("transfer", "images"):
                continue
            owners.setdefault(key, []).append(name)
            if name in used and field.is_required() and getattr(study, key) is None:
                yield Mistake(key, f"is required by the transfer set {name!r}: {field.description}")
    for key, names in owners.items():
        if getattr(study, key) is not None and not used & set(names):
            words = " or ".join(map(repr, names))
            yield Mistake(key, f"has no effect without the transfer set {words}; remove it")
    for name, kind in sets.items():
        own = {key: field for key, field in kind.model_fields.items() if owners.get(key)}
        given = {key for key in own if getattr(study, key) is not None}
        missing = {key for key, field in own.items() if field.is_required()} - given
        if missing or not (name in used or given):
            continue
        chosen = study.transfer_set(name)
        for key, part in parts(chosen, ""):
            if isinstance(part, DataSettings):
                for inner, message, *_ in data_problems(part):
                    yield Mistake(f"{key}.{inner}".lstrip("."), message)
        for refusal in refusals_from(chosen, lambda thing: thing.refusals(as_arm(study))):
            yield Mistake(within(refusal, "").key.lstrip("."), refusal.message)
    chosen_at = ("centre.transfer", (study.centre.transfer,)), ("vary.transfer", study.vary.transfer)
    for where, asked in chosen_at:
        for name in sorted(sets.keys() & set(asked)):
            problems = (problem_with_backbones(sets[name], [m]) for m in (study.model, *study.vary.models))
            for problem in filter(None, dict.fromkeys(problems)):
                yield Mistake(where, problem)


def as_arm(study: StudySettings, model: ModelSettings | None = None) -> Any:
    """Return what a thing is asked about, as of an arm: the parts that a study has too."""
    model = model or study.model
    return SimpleNamespace(
        data=study.data,
        model=model,
        teachers=TeacherSettings(),
        start="consolidated",
        local=study.pretraining,
    )


def _check_regression(study: StudySettings) -> list[Mistake]:
    """Return what a study of a regression cannot be asked for."""
    methods, sets, ensembles = (
        study.families[f"consolidation.{k}"] for k in ("method", "transfer", "ensemble")
    )
    transfers = [("centre.transfer", study.centre.transfer)]
    transfers += [("vary.transfer", name) for name in study.vary.transfer]
    chosen = study.distillation.ensemble
    found = [("methods", regression_problem(methods, study.method(name), name)) for name in study.methods]
    found += [(key, regression_problem(sets, sets.find(name), name)) for key, name in transfers]
    found += [
        ("distillation.ensemble", regression_problem(ensembles, type(chosen), chosen.ensemble)),
        ("temperature", temperature_problem("regression", study.temperature)),
        ("search.temperatures", temperature_problem("regression", *study.search.temperatures)),
    ]
    return [Mistake(key, message) for key, message in found if message is not None]


def _has_unlabelled(study: StudySettings) -> bool:
    transfers = {study.centre.transfer, *study.vary.transfer}
    unlabelled = not all(study.is_labelled(name) for name in transfers)
    return not study.centre.labels or False in study.vary.labels or unlabelled
