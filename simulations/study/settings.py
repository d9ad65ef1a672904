"""The study file, as frozen pydantic models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from kdfed.config import (
    DataSettings,
    GeneratorSettings,
    ModelSettings,
    OptimiserSettings,
    PartitionSettings,
    PositiveInt,
    Settings,
    merge,
    parse_set,
    read_mapping,
)
from kdfed.config.checks import (
    data_problems,
    generator_problem,
    momentum_problem,
    proxy_problems,
    regression_problem,
    temperature_problem,
)
from kdfed.config.mistakes import describe_all
from kdfed.config.sections import Distinct, Passes, Rate, Temperature
from kdfed.errors import ConfigError, Mistake, shown

Method = Literal["vanilla", "tuned", "mutual", "partitioned"]
Transfer = Literal["public", "own", "teacher", "union", "proxy", "noise", "generated"]

UNLABELLED: tuple[Transfer, ...] = ("proxy", "noise", "generated")
"""Transfer sets that have no labels of the task."""


class Pretraining(OptimiserSettings):
    """How the models are trained on their own data, before any distillation."""

    epochs: Passes = 20
    """Passes over a model's own examples."""


class Distillation(OptimiserSettings):
    """How a student is trained on the transfer set, whatever the method."""

    epochs: Passes = 20
    """Passes over the transfer set."""
    batch_size: PositiveInt = 32
    """Examples a step."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the epochs; ``cosine`` decays to 0."""
    ensemble: Literal["mean-logits", "mean-probabilities", "confidence"] = "mean-probabilities"
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
    """The point from which other factors vary one at a time."""

    teachers: PositiveInt = 1
    """Teachers of the student; with one, a pair of models."""
    transfer: Transfer = "public"
    """The transfer set."""
    labels: bool = True
    """Whether its labels are used."""
    images: PositiveInt | None = None
    """How many of its examples. Default: all."""


class Vary(Settings):
    """Other values of the factors, each tried with everything else at the centre."""

    teachers: Annotated[tuple[PositiveInt, ...], Distinct] = ()
    """Numbers of teachers."""
    transfer: Annotated[tuple[Transfer, ...], Distinct] = ()
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
    """A whole study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """Letters, digits, dot, hyphen, underscore."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1), Distinct] = (
        0, 1, 2,
    )  # fmt: skip
    """One of each cell; a seed varies partition, initial weights and orders together."""
    data: DataSettings = DataSettings()
    """Where the examples come from."""
    proxy: DataSettings | None = None
    """The other data set of the transfer set ``proxy``: its images are resized, its labels never used."""
    generator: GeneratorSettings | None = None
    """The generator of the transfer set ``generated``. Default: the defaults of its keys."""
    model: ModelSettings = ModelSettings()
    """Architecture of teachers and student."""
    pretraining: Pretraining = Pretraining()
    """Before distillation."""
    distillation: Distillation = Distillation()
    """On the transfer set."""
    search: Search = Search()
    """On the validation split."""
    temperature: Temperature = 4.0
    """Temperature of the methods that are not tuned."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the methods that are not tuned, on labelled transfer sets."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1), Distinct] = (
        "vanilla", "tuned", "mutual", "partitioned",
    )  # fmt: skip
    """What is compared."""
    distributions: Annotated[dict[str, PartitionSettings], Field(min_length=1)]
    """Who holds what, by name; the number of participants is that of the models."""
    centre: Centre = Centre()
    """Where the other factors stand."""
    vary: Vary = Vary()
    """Where else they are put."""


def load_study(path: Path, assignments: list[str] | None = None) -> StudySettings:
    """Read a study file, replace keys, check everything.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    values = merge(read_mapping(path), parse_set(assignments or []))
    try:
        study = StudySettings.model_validate_json(
            json.dumps(values, default=str), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise ConfigError(str(path), describe_all(error.errors(), values)) from error
    mistakes = _check(study)
    if mistakes:
        raise ConfigError(str(path), mistakes)
    return study


def _check(study: StudySettings) -> list[Mistake]:
    from kdfed.models import check_model

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
    if study.centre.transfer in UNLABELLED and study.centre.labels:
        wrong("centre.labels", f"expected false with transfer {study.centre.transfer!r}, which has no labels")
    if study.centre.transfer in UNLABELLED and True in study.vary.labels:
        wrong(
            "vary.labels",
            f"expected false alone with transfer {study.centre.transfer!r}, which has no labels",
        )
    used = {study.centre.transfer, *study.vary.transfer}
    if "proxy" in used and study.proxy is None:
        wrong("proxy", "is required by the transfer set 'proxy': name its data source")
    if "proxy" not in used and study.proxy is not None:
        wrong("proxy", "has no effect without the transfer set 'proxy'; remove it")
    if "generated" not in used and study.generator is not None:
        wrong("generator", "has no effect without the transfer set 'generated'; remove it")
    if study.proxy is not None:
        mistakes += [Mistake(key, text) for key, text in proxy_problems(study.proxy, study.data)]
    problem = generator_problem(study.generator) if study.generator is not None else None
    if problem is not None:
        wrong("generator", problem)
    for name in study.vary.distributions:
        if name not in study.distributions:
            wrong("vary.distributions", f"expected names of distributions, got {shown(name)}")
    if "tuned" in study.methods and "vanilla" not in study.methods:
        wrong("methods", "expected 'vanilla' beside 'tuned', which is one of its trials; add it")
    return mistakes


def _check_regression(study: StudySettings) -> list[Mistake]:
    """Return what a study of a regression cannot be asked for."""
    found = [("methods", regression_problem("method", method)) for method in study.methods]
    found += [
        ("centre.transfer", regression_problem("transfer", study.centre.transfer)),
        *(("vary.transfer", regression_problem("transfer", other)) for other in study.vary.transfer),
        ("distillation.ensemble", regression_problem("ensemble", study.distillation.ensemble)),
        ("temperature", temperature_problem("temperature", study.temperature)),
        ("search.temperatures", temperature_problem("temperatures", *study.search.temperatures)),
    ]
    return [Mistake(key, message) for key, message in found if message is not None]


def _has_unlabelled(study: StudySettings) -> bool:
    transfers: set[Any] = {study.centre.transfer, *study.vary.transfer}
    return not study.centre.labels or False in study.vary.labels or bool(transfers & set(UNLABELLED))
