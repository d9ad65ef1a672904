"""What a study compares: points of the other factors, and the trials of each method there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kdfed.config import GeneratorSettings, ModelSettings, PartitionSettings
from kdfed.data import prepare
from kdfed.errors import unknown
from simulations.study.code import code_digest, data_digest
from simulations.study.settings import UNLABELLED, StudySettings, Transfer


@dataclass(frozen=True)
class Point:
    """Where models meet: everything but the method.

    Parameters
    ----------
    distribution
        Its name in the study.
    model
        Architecture of teachers and student.
    teachers
        How many.
    transfer, labels, images
        The transfer set, whether its labels are used, how many of its examples (None: all).
    seed
        The seed.
    factor
        Which factor is away from the centre; empty at the centre.
    """

    distribution: str
    model: ModelSettings
    teachers: int
    transfer: Transfer
    labels: bool
    images: int | None
    seed: int
    factor: str = ""

    def row(self) -> dict[str, Any]:
        """Return what a row of ``study.json`` says of it."""
        options = ",".join(f"{key}={value}" for key, value in self.model.options.items())
        return {
            "distribution": self.distribution,
            "model": f"{self.model.name}({options})" if options else self.model.name,
            "teachers": self.teachers,
            "transfer": self.transfer,
            "labels": self.labels,
            "images": self.images,
            "seed": self.seed,
            "factor": self.factor,
        }


@dataclass(frozen=True)
class Trial:
    """One distillation at a point; temperature and weight only where the method has them."""

    method: str
    temperature: float | None
    weight: float | None
    rate: float = 1.0
    passes: float = 1.0


def points(study: StudySettings) -> list[Point]:
    """Return every point: all distributions at the centre, then one factor at a time away from it."""
    found: list[Point] = []
    for seed in study.seeds:
        for name in study.distributions:
            centre = Point(
                name,
                study.model,
                study.centre.teachers,
                study.centre.transfer,
                study.centre.labels,
                study.centre.images,
                seed,
            )
            found.append(centre)
            if name in (study.vary.distributions or study.distributions):
                found += _around(study, centre)
    return found


def _around(study: StudySettings, centre: Point) -> Iterator[Point]:
    vary = study.vary
    for teachers in vary.teachers:
        yield replace(centre, teachers=teachers, factor="teachers")
    for transfer in vary.transfer:
        labels = centre.labels and transfer not in UNLABELLED
        yield replace(centre, transfer=transfer, labels=labels, factor="transfer")
    for labels in vary.labels:
        yield replace(centre, labels=labels, factor="labels")
    for images in vary.images:
        yield replace(centre, images=images, factor="images")
    for model in vary.models:
        yield replace(centre, model=model, factor="model")


def default_weight(study: StudySettings, point: Point) -> float:
    """Return the weight of the methods that are not tuned."""
    return study.weight if point.labels else 1.0


def trials(study: StudySettings, point: Point) -> list[Trial]:
    """Return every trial at a point; vanilla KD is one of those of tuned KD."""
    weight, search = default_weight(study, point), study.search
    untuned = {
        "vanilla": Trial("vanilla", study.temperature, weight),
        "mutual": Trial("mutual", None, None),
        "partitioned": Trial("partitioned", study.temperature, weight),
    }
    for method in study.methods:
        if method not in (*untuned, "tuned"):
            raise unknown("methods", method, (*untuned, "tuned"), "simulations.study.cells.trials")
    present = [untuned[method] for method in study.methods if method in untuned]
    found = list(present)  # vanilla's own pair comes first: among equals it wins the search
    weights = search.weights if point.labels else (1.0,)
    if "tuned" in study.methods:
        found += [Trial("vanilla", t, w) for w in weights for t in search.temperatures]
    if search.rates and point.factor == "":
        pairs = [(rate, passes) for passes in search.passes for rate in search.rates]
        pairs = pairs[: len(search.temperatures) * len(weights)]
        found += [replace(base, rate=rate, passes=passes) for base in present for rate, passes in pairs]
    return list(dict.fromkeys(found))


def models_key(study: StudySettings, point: Point) -> str:
    """Return the cache key of a point's pre-trained models: of all that they depend on."""
    return _digest(
        "models",
        code_digest([point.model.name, study.data.source]),
        data_digest(study.data),
        study.data.model_dump(mode="json"),
        partition_settings(study, point).model_dump(mode="json"),
        point.model.model_dump(mode="json"),
        study.pretraining.model_dump(mode="json"),
        point.teachers,
        point.seed,
    )


def generated_key(study: StudySettings, point: Point) -> str:
    """Return the cache key of a point's generated transfer set: of all that it depends on."""
    generator = generator_of(study).model_dump(mode="json")
    return _digest("generated", models_key(study, point), generator, point.images)


def generator_of(study: StudySettings) -> GeneratorSettings:
    """Return the settings of the generator."""
    return study.generator or GeneratorSettings()


def trial_key(study: StudySettings, point: Point, trial: Trial) -> str:
    """Return the cache key of a trial's result: of all that it depends on."""
    source: Any = None
    if point.transfer == "proxy" and study.proxy:
        resized = study.proxy.model_copy(update={"shape": prepare(study.data).input_shape})
        settings = study.proxy.model_dump(mode="json")
        source = [settings, code_digest([study.proxy.source]), data_digest(resized)]
    elif point.transfer == "generated":
        source = generator_of(study).model_dump(mode="json")
    return _digest(
        "trial",
        models_key(study, point),
        study.distillation.model_dump(mode="json"),
        [point.transfer, point.labels, point.images, source],
        asdict(trial),
    )


def partition_settings(study: StudySettings, point: Point) -> PartitionSettings:
    """Return a point's distribution, for its student and teachers."""
    return study.distributions[point.distribution].model_copy(update={"participants": point.teachers + 1})


def _digest(*parts: Any) -> str:
    text = json.dumps([torch.__version__, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
