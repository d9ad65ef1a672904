"""The jobs of a study: train the models of a condition, or run one trial.

A result is a file, named by its cache key. It is there whole or not at all, so a
study that is killed loses only what was in flight.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from kdfed.arrays import problem_with_arrays, spec_of
from kdfed.cohort import train_cohort
from kdfed.consolidate import consolidate
from kdfed.data import Examples, PreparedData, prepare
from kdfed.distill import KDMethod
from kdfed.distill.stacks import teacher_logits
from kdfed.errors import DataError
from kdfed.local import plain_loss
from kdfed.models import State, build_model, load_state, state_of
from kdfed.named import blamed
from kdfed.partition import Partition, partition_of
from kdfed.reading import cut_of, examples_for, inputs_for
from kdfed.records import write_atomically
from kdfed.records.parsing import parse_json
from kdfed.records.rounds import Count, Score
from kdfed.seeding import derive, derive_many, numpy_generator
from kdfed.setup import Setup
from kdfed.thing import origin_of
from kdfed.train import predict
from kdfed.transfer_sets.transfer_set import HeldSet, examples_of, without_labels
from simulations.study.design import (
    Condition,
    Trial,
    generated_key,
    models_key,
    partition_settings,
    trial_key,
)
from simulations.study.settings import StudySettings, as_arm


def trial_file(cache: Path, key: str) -> Path:
    """Return where a trial's result lies."""
    return cache / f"{key}.json"


def models_file(cache: Path, key: str) -> Path:
    """Return where a condition's models lie."""
    return cache / f"{key}.safetensors"


def generated_file(cache: Path, study: StudySettings, condition: Condition) -> Path:
    """Return where a condition's generated transfer set lies."""
    return cache / f"{generated_key(study, condition)}.safetensors"


def read_trial(cache: Path, key: str) -> dict[str, Any] | None:
    """Return a trial's result; None where the cache holds none that can be read, so that it is run again."""
    try:
        row: dict[str, Any] = parse_json(trial_file(cache, key).read_text(encoding="utf-8"))
        _TrialResult.model_validate(row)
    except (OSError, ValueError):  # pydantic's error is a ValueError
        return None
    return row


def has_models(study: StudySettings, condition: Condition, cache: Path) -> bool:
    """Whether the cache holds a condition's models, whole and finite."""
    spec = spec_of(state_of(_build(prepare(study.data), condition, 0)))
    try:
        states = _read_states(models_file(cache, models_key(study, condition)))
    except (OSError, ValueError, SafetensorError):
        return False
    whole = all(problem_with_arrays(state, spec) is None for state in states)
    return whole and len(states) == condition.teachers + 1


def has_generated(study: StudySettings, condition: Condition, cache: Path) -> bool:
    """Whether the cache holds a condition's generated transfer set, whole and finite."""
    data = prepare(study.data)
    count = condition.images or len(data.splits.transfer)
    cut = cut_of(condition.model)
    shape = data.input_shape if cut is None else cut.shape
    try:
        inputs = _tensors(generated_file(cache, study, condition))["inputs"]
    except (OSError, KeyError, SafetensorError):
        return False
    return tuple(inputs.shape) == (count, *shape) and bool(inputs.isfinite().all())


def partition_at(study: StudySettings, condition: Condition) -> Partition:
    """Deal the train split: to the student first, then to its teachers."""
    return partition_of(prepare(study.data), partition_settings(study, condition), condition.seed)


def pretrain(study: StudySettings, condition: Condition, cache: Path) -> None:
    """Train the student and its teachers, each on its own examples from weights of its own."""
    file = models_file(cache, models_key(study, condition))
    if has_models(study, condition, cache):
        return
    data, partition = prepare(study.data), partition_at(study, condition)
    members = range(condition.teachers + 1)
    model = _build(data, condition, 0)
    starts = [
        state_of(_build(data, condition, derive(condition.seed, "init", 0, member))) for member in members
    ]
    parts = [partition.indices[member] for member in members]
    states: list[State] = [{}] * len(parts)
    for trained in train_cohort(
        model,
        starts,
        examples_for(condition.model, data, np.concatenate(parts)),
        [len(part) for part in parts],
        study.pretraining,
        plain_loss(data.task),
        derive_many(condition.seed, "pretraining", 0, list(members)),
        setup=_setup(data),
    ):
        for member, state, _ in trained.each():
            states[member] = state
    tensors = {
        f"{member}/{key}": value for member, state in enumerate(states) for key, value in state.items()
    }
    write_atomically(file, save(tensors))


def distil(study: StudySettings, condition: Condition, trial: Trial, cache: Path) -> None:
    """Run one trial, and write what came of it."""
    key = trial_key(study, condition, trial)
    if read_trial(cache, key) is not None:
        return
    data = prepare(study.data)
    student, *teachers = _models(study, condition, cache)
    validation, test = (
        examples_for(condition.model, data, held) for held in (data.splits.validation, data.splits.test)
    )
    transfer = transfer_of(study, condition, cache)
    before = predict(student, test.inputs)
    settings = _settings(study, condition, trial)
    sources: list[nn.Module] | torch.Tensor = (
        teachers if study.method(trial.method).needs_teachers else teacher_logits(teachers, transfer.inputs)
    )
    seed = derive(condition.seed, "distil")
    expected = f"method {trial.method!r}, {_where(condition)}: expected a student"
    with blamed(origin_of(settings), expected):
        result = consolidate(student, sources, transfer, validation, settings, seed, setup=_setup(data))
    after = predict(student, test.inputs)
    strata = torch.from_numpy(data.strata[data.splits.test])
    held = np.unique(data.strata[partition_at(study, condition).indices[0]])
    own = torch.from_numpy(np.isin(strata.numpy(), held))
    labels, task = test.labels, data.task
    scores_before, scores_after = task.scores(before, labels), task.scores(after, labels)
    row = {
        "teacher_accuracy": float(
            np.mean([task.score(predict(teacher, test.inputs), labels) for teacher in teachers])
        ),
        "before": float(scores_before.mean()),
        "after": float(scores_after.mean()),
        "validation_accuracy": result.accuracy,
        "forgetting": float(scores_before[own].mean()) - float(scores_after[own].mean()),
        "per_class_before": _per_class(scores_before, strata, len(data.strata_names)),
        "per_class_after": _per_class(scores_after, strata, len(data.strata_names)),
        "steps": result.steps,
        "transfer_images": len(transfer),
    }
    write_atomically(trial_file(cache, key), json.dumps(row).encode())


def transfer_of(study: StudySettings, condition: Condition, cache: Path) -> Examples:
    """Return the transfer set of a condition; see :data:`kdfed.transfer_sets.TRANSFER_SETS`.

    Raises
    ------
    DataError
        If there are fewer examples than asked for, or the proxy's inputs do not fit.
    """
    data, partition = prepare(study.data), partition_at(study, condition)
    chosen = study.transfer_set(condition.transfer, condition.images)
    if not isinstance(chosen, HeldSet):
        if chosen.needs_teachers:
            generate_at(study, condition, cache)
            return without_labels(_tensors(generated_file(cache, study, condition))["inputs"])
        public, seed = data.splits.transfer, derive(condition.seed, "transfer")
        if condition.model.backbone is None or not chosen.is_stored:
            return examples_of(chosen, examples_for(condition.model, data, public), (), seed)
        stored = Examples(torch.from_numpy(data.dataset.inputs[public]), data.labels(public))
        made = examples_of(chosen, stored, (), seed)
        return Examples(inputs_for(condition.model, made.inputs.numpy(), data.normalisation), made.labels)
    student, *teachers = (partition.indices[member] for member in range(condition.teachers + 1))
    expected = f"transfer set {condition.transfer!r}, {_where(condition)}: expected the indices of examples"
    with blamed(origin_of(chosen), expected):
        indices = np.asarray(chosen.indices(data.splits.transfer, student, teachers))
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise TypeError(f"returned {indices.dtype} {indices.shape}")
    indices = numpy_generator(condition.seed, "transfer").permutation(indices)
    if condition.images is not None and condition.images > len(indices):
        raise DataError(
            f"expected at least {condition.images} examples in the transfer set {condition.transfer!r}, got "
            f"{len(indices)}; lower images or hold out a larger data.splits.transfer",
            "vary.images",
        )
    return examples_for(condition.model, data, indices[: condition.images])


def check_teachers(study: StudySettings, condition: Condition) -> None:
    """Refuse teachers that a transfer set cannot be made of."""
    data = prepare(study.data)
    for refusal in study.transfer_set(condition.transfer).misfits(as_arm(study, condition.model), data):
        raise DataError(refusal.message, refusal.key.lstrip("."))


def generate_at(study: StudySettings, condition: Condition, cache: Path) -> None:
    """Generate the transfer set of a condition from its teachers, for all methods there."""
    file = generated_file(cache, study, condition)
    if has_generated(study, condition, cache):
        return
    data = prepare(study.data)
    _, *teachers = _models(study, condition, cache)
    public = examples_for(condition.model, data, data.splits.transfer)
    seed = derive(condition.seed, "transfer")
    made = examples_of(study.transfer_set(condition.transfer, condition.images), public, teachers, seed)
    write_atomically(file, save({"inputs": made.inputs}))


def _settings(study: StudySettings, condition: Condition, trial: Trial) -> KDMethod:
    chosen, kind = study.distillation, study.method(trial.method)
    values: dict[str, Any] = dict(chosen) | {
        "labels": condition.labels,
        "lr": chosen.lr * trial.rate,
        "epochs": max(1, round(chosen.epochs * trial.passes)),
        "temperature": trial.temperature,
        "weight": trial.weight,
        "warm_up": 0.0,  # the student is trained already; the rate is searched
        "clip": 0.0,
    }
    return kind(**{key: value for key, value in values.items() if key in kind.model_fields})


def _setup(data: PreparedData) -> Setup:
    """Return how the trials of a study are computed, on any machine."""
    return Setup(data.task, torch.device("cpu"), threads=1, precision="float32")


def _where(condition: Condition) -> str:
    return f"distribution {condition.distribution!r}, seed {condition.seed}"


def _build(data: PreparedData, condition: Condition, seed: int) -> nn.Module:
    return build_model(condition.model, data.input_shape, data.classes, seed)


def _models(study: StudySettings, condition: Condition, cache: Path) -> list[nn.Module]:
    data, models = prepare(study.data), []
    for state in _states(models_file(cache, models_key(study, condition))):
        model = _build(data, condition, 0)
        load_state(model, state)
        models.append(model)
    return models


class _TrialResult(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    teacher_accuracy: Score
    before: Score
    after: Score
    validation_accuracy: Score
    forgetting: float
    per_class_before: list[Score | None]
    per_class_after: list[Score | None]
    steps: Count
    transfer_images: Count


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    return dict(load(file.read_bytes()))


@lru_cache(maxsize=2)
def _states(file: Path) -> list[State]:
    return _read_states(file)


def _read_states(file: Path) -> list[State]:
    found: dict[int, State] = {}
    for name, value in _tensors(file).items():
        member, _, key = name.partition("/")
        found.setdefault(int(member), {})[key] = value
    return [found[member] for member in sorted(found)]


def _per_class(scores: torch.Tensor, strata: torch.Tensor, count: int) -> list[float | None]:
    """Return the mean score in each class, or bin of a regression; None where the test split holds none."""
    found: list[float | None] = []
    for stratum in range(count):
        rows = strata == stratum
        found.append(float(scores[rows].mean()) if bool(rows.any()) else None)
    return found
