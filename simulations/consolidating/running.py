"""A consolidation without federation: measured before and after, on examples that the student does not see.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from kdfed.consolidate import consolidate
from kdfed.data import Examples
from kdfed.distill import ConsolidationResult
from kdfed.distill.stacks import logits_apart
from kdfed.ensembles import Ensemble, MeanLogits, MeanProbabilities
from kdfed.models import State, state_of
from kdfed.reading import examples_for
from kdfed.seeding import derive
from kdfed.settings import ModelSettings
from kdfed.setup import Setup
from kdfed.shelf import label_counts
from kdfed.task import CLASSIFICATION
from kdfed.train import predict
from kdfed.transfer_sets.transfer_set import examples_of
from simulations.consolidating.plan import Plan
from simulations.server_data import server_data
from strategies.arm_config import ArmConfig

OnEpoch = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Compared:
    """A row of the table: one model, or the ensemble.

    Parameters
    ----------
    name
        For people.
    model
        Name of its model; empty of the ensemble.
    knows
        How many of the classes it knows; 0 in a regression.
    score
        Accuracy in [0, 1], or R^2.
    per_class
        The same in each class; None where there is no example of one. Empty without labels.
    """

    name: str
    model: str
    knows: int
    score: float
    per_class: tuple[float | None, ...] = ()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a consolidation.

    Parameters
    ----------
    rows
        The teachers, the ensemble, the student before and after.
    result
        What the method left.
    state
        The student's weights.
    measured, transferred
        How many examples are measured on, and distilled on.
    seconds
        That it took, measuring included.
    """

    rows: tuple[Compared, ...]
    result: ConsolidationResult
    state: State
    measured: int
    transferred: int
    seconds: float

    @property
    def before(self) -> Compared:
        """The student as it started."""
        return self.rows[-2]

    @property
    def after(self) -> Compared:
        """The student."""
        return self.rows[-1]


def run_plan(plan: Plan, on_epoch: OnEpoch = lambda epoch, epochs, score: None) -> Outcome:
    """Distil the teachers into the student.

    Parameters
    ----------
    plan
        Its student is trained in place.
    on_epoch
        Told (epoch from 1, epochs, validation score or None) after each epoch.

    Returns
    -------
    Outcome
        With labels, scores are on the test split. Without, they are the share of held-out examples on which a
        model answers as the ensemble does.
    """
    began = time.monotonic()
    data, method = plan.data, plan.arm.consolidation
    setup = Setup.of(plan.arm, data.task)
    setup.settle()
    models = [teacher.model.to(setup.device) for teacher in plan.teachers]
    student = plan.student.to(setup.device)
    counts = label_counts(plan.teachers) if data.task is CLASSIFICATION else None
    read, reads = _Reading(plan, setup), [teacher.settings.reads for teacher in plan.teachers]
    ensemble: Ensemble = getattr(method, "ensemble", None) or _mean(data.task is CLASSIFICATION)
    splits, named = data.splits, plan.arm.model
    held = splits.test if plan.is_labelled else splits.validation
    validation, measured = read(named, splits.validation), read(named, held)
    theirs = [read(teacher.settings, held).inputs for teacher in plan.teachers]
    validation_logits, measured_logits = logits_apart(
        models, reads, lambda k: (read(plan.teachers[k].settings, splits.validation).inputs, theirs[k])
    )
    scores = ensemble.scores(validation_logits, validation.labels, counts)
    together = data.task.target(ensemble, measured_logits, 1.0, scores)
    if not plan.is_labelled:  # what else is there to agree with
        measured = validation = Examples(validation.inputs, together.argmax(1))

    def row(name: str, model: str, outputs: torch.Tensor, knows: int) -> Compared:
        return _compared(plan, name, model, outputs, measured.labels, knows)

    rows = [
        row(
            teacher.path.name,
            teacher.settings.title,
            predict(model, inputs),
            int(teacher.knows.sum()),
        )
        for teacher, model, inputs in zip(plan.teachers, models, theirs, strict=True)
    ]
    known = int(torch.tensor([teacher.knows.tolist() for teacher in plan.teachers]).any(0).sum())
    rows.append(row(f"ensemble ({ensemble.ensemble})", "", together, known))
    title, every = named.title, plan.card.outputs
    rows.append(row("student before", title, predict(student, measured.inputs), every))
    seed = derive(plan.seed, "consolidate")
    sources: Sequence[nn.Module] | torch.Tensor = models
    is_apart = any(one != named.reads for one in reads)
    stored = method.transfer.is_stored and any([named.reads, *reads])
    public = read.stored if stored else read(named, plan.transfer)
    transfer = examples_of(method.transfer, public, models, derive(plan.seed, "transfer"))
    if stored:
        images, method = read.config.views_of(transfer, method, seed)
        transfer = read.config.read(images, named)
        if is_apart:
            (sources,) = logits_apart(
                models, reads, lambda k: [read.config.read(images, plan.teachers[k].settings).inputs]
            )
    result = consolidate(
        student,
        sources,
        transfer,
        validation,
        method,
        seed,
        setup=setup,
        label_counts=counts,
        validation_logits=validation_logits if is_apart else None,
        fresh=state_of(read.config.build(named, "perturb")) if method.perturb else None,
        on_epoch=on_epoch,
    )
    rows.append(row("student after", title, predict(student, measured.inputs), every))
    seconds = time.monotonic() - began
    return Outcome(tuple(rows), result, state_of(student), len(measured), len(transfer), seconds)


class _Reading:
    """Reads examples for any model."""

    def __init__(self, plan: Plan, setup: Setup) -> None:
        self._data, self._device = plan.data, setup.device
        whole = replace(plan.data, splits=replace(plan.data.splits, transfer=plan.transfer))
        held = server_data(whole, plan.arm.model, setup.device)
        self.config = ArmConfig(arm=plan.arm, data=held, seed=plan.seed)

    def __call__(self, model: ModelSettings, indices: np.ndarray) -> Examples:
        return examples_for(model, self._data, indices, self._device)

    @property
    def stored(self) -> Examples:
        """The transfer set, with images as they are stored."""
        return self.config.stored_transfer


def _mean(classes: bool) -> Ensemble:
    """Return what stands for an ensemble beside a method that has none."""
    return MeanProbabilities() if classes else MeanLogits()


def _compared(
    plan: Plan, name: str, model: str, outputs: torch.Tensor, labels: torch.Tensor, knows: int
) -> Compared:
    each = plan.data.task.scores(outputs, labels)
    per_class: tuple[float | None, ...] = ()
    if plan.is_labelled and plan.data.task is CLASSIFICATION:
        per_class = tuple(
            float(each[labels == label].mean()) if bool((labels == label).any()) else None
            for label in range(plan.data.classes)
        )
    return Compared(name, model, knows if plan.card.classes else 0, float(each.mean()), per_class)
