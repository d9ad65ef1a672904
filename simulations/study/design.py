"""What a study compares: experimental conditions, and the trials of each method in them; their cache keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kdfed.choosing import parts
from kdfed.data import prepare
from kdfed.named import is_named
from kdfed.outside import outside_names
from kdfed.partitions import PartitionBase
from kdfed.reading import cut_of
from kdfed.settings import DataSettings, ModelSettings, Settings
from simulations.study.hashes import code_sha256, data_sha256
from simulations.study.settings import StudySettings


@dataclass(frozen=True)
class Condition:
    """An experimental condition: all that a cell of the study has, but for its method.

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
    transfer: str
    labels: bool
    images: int | None
    seed: int
    factor: str = ""

    def row(self) -> dict[str, Any]:
        """Return what a row of ``study.json`` says of it."""
        options = ",".join(f"{key}={value}" for key, value in self.model.options.items())
        return {
            "distribution": self.distribution,
            "model": f"{self.model.title}({options})" if options else self.model.title,
            "teachers": self.teachers,
            "transfer": self.transfer,
            "labels": self.labels,
            "images": self.images,
            "seed": self.seed,
            "factor": self.factor,
        }


@dataclass(frozen=True)
class Trial:
    """One distillation in a condition, by one choice of hyper-parameters.

    Temperature and weight are None where the method has none; ``rate`` and ``passes`` are factors of the
    learning rate and of the number of epochs.
    """

    method: str
    temperature: float | None
    weight: float | None
    rate: float = 1.0
    passes: float = 1.0


def conditions(study: StudySettings) -> list[Condition]:
    """Return every condition: all distributions at the centre, then one factor at a time away from it."""
    found: list[Condition] = []
    for seed in study.seeds:
        for name in study.distributions:
            centre = Condition(
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


def _around(study: StudySettings, centre: Condition) -> Iterator[Condition]:
    vary = study.vary
    for teachers in vary.teachers:
        yield replace(centre, teachers=teachers, factor="teachers")
    for transfer in vary.transfer:
        labels = centre.labels and study.is_labelled(transfer)
        yield replace(centre, transfer=transfer, labels=labels, factor="transfer")
    for labels in vary.labels:
        yield replace(centre, labels=labels, factor="labels")
    for images in vary.images:
        yield replace(centre, images=images, factor="images")
    for model in vary.models:
        yield replace(centre, model=model, factor="model")


def default_weight(study: StudySettings, condition: Condition) -> float:
    """Return the weight of the methods that are not tuned."""
    return study.weight if condition.labels else 1.0


def untuned(study: StudySettings, condition: Condition, method: str) -> Trial:
    """Return a method's trial with the settings of those that are not tuned."""
    keys = study.method(method).model_fields
    return Trial(
        method,
        study.temperature if "temperature" in keys else None,
        default_weight(study, condition) if "weight" in keys else None,
    )


def trials(study: StudySettings, condition: Condition) -> list[Trial]:
    """Return every trial in a condition; vanilla KD is one of those of tuned KD."""
    search = study.search
    weights = search.weights if condition.labels else (1.0,)
    own = {
        method: untuned(study, condition, method)
        for method in study.methods
        if not study.method(method).searches
    }
    present = list(own.values())
    found = list(present)  # its own pair comes first: among equals it wins the search
    for method in study.methods:
        searched = study.method(method).searches
        found += [Trial(searched, t, w) for w in weights for t in search.temperatures if searched]
    if search.rates and condition.factor == "":
        pairs = [(rate, passes) for passes in search.passes for rate in search.rates]
        pairs = pairs[: len(search.temperatures) * len(weights)]
        found += [replace(base, rate=rate, passes=passes) for base in present for rate, passes in pairs]
    return list(dict.fromkeys(found))


def models_key(study: StudySettings, condition: Condition) -> str:
    """Return the cache key of a condition's pre-trained models: of all that they depend on."""
    settings = (study.data, partition_settings(study, condition), condition.model, study.pretraining)
    dumped = [one.model_dump(mode="json") for one in settings]
    cut = cut_of(condition.model)
    backbone = [] if cut is None else [cut.weights_sha256]
    return _cache_key(
        "models",
        _code_hash(*settings),
        data_sha256(study.data),
        dumped,
        condition.teachers,
        condition.seed,
        *backbone,
    )


def generated_key(study: StudySettings, condition: Condition) -> str:
    """Return the cache key of a transfer set that is made of a condition's teachers."""
    return _cache_key("generated", models_key(study, condition), _transfer(study, condition))


def trial_key(study: StudySettings, condition: Condition, trial: Trial) -> str:
    """Return the cache key of a trial's result: of all that it depends on."""
    settings = study.distillation.model_dump(mode="json")
    code = _code_hash(study.distillation, also=[trial.method])
    transfer = [_transfer(study, condition), condition.labels, condition.images]
    return _cache_key("trial", models_key(study, condition), code, settings, transfer, asdict(trial))


def _transfer(study: StudySettings, condition: Condition) -> list[Any]:
    """Return what a condition's transfer set depends on: its settings, its code, other data that it reads."""
    chosen = study.transfer_set(condition.transfer, condition.images)
    shape = prepare(study.data).input_shape
    data = [part for _, part in parts(chosen, "") if isinstance(part, DataSettings)]
    data_hashes = [data_sha256(part.model_copy(update={"shape": shape})) for part in data]
    return [chosen.model_dump(mode="json"), _code_hash(chosen), data_hashes]


def _code_hash(*settings: Settings, also: Iterable[str] = ()) -> str:
    """Return the SHA-256 of all code that settings name, and of what else is named."""
    names = [name for _, name in outside_names(*settings)] + list(also)
    return code_sha256(name for name in names if is_named(name))


def partition_settings(study: StudySettings, condition: Condition) -> PartitionBase:
    """Return a condition's distribution, for its student and teachers."""
    return study.distributions[condition.distribution].model_copy(
        update={"participants": condition.teachers + 1}
    )


def _cache_key(*parts: Any) -> str:
    text = json.dumps([torch.__version__, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
