r"""A student on its transfer set: what every KD method works with.

The teachers' logits are computed once, unless the transfer images change from step to step (augmentation
without fixed views). Labels of the transfer set are touched only where the settings say so; the validation
split serves selection and ensembles.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn

from kdfed.augmentation import augment
from kdfed.distill.diagnosis import Trend, trend_of
from kdfed.distill.schedule import cosine, warm_up
from kdfed.distill.stacks import TeacherStacks, uploaded_logits
from kdfed.ensembles.ensemble import Ensemble
from kdfed.errors import KdfedError
from kdfed.models import load_state, state_of
from kdfed.optimisers import Optimiser
from kdfed.seeding import torch_generator, torch_seed
from kdfed.settings import DistillationSettings
from kdfed.setup import Setup
from kdfed.task import Task
from kdfed.train import epochs, evaluate

if TYPE_CHECKING:
    from kdfed.data import Examples

OnEpoch: TypeAlias = Callable[[int, int, float | None], None]
"""(epoch from 1, epochs of all trainings, validation accuracy or None)."""

TargetOf: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(teachers' logits [K, N, C], inputs [N, ...], labels [N] or None) -> what the student follows, [N, C]."""

LossesOf: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(the student's outputs [N, C], what it follows [N, C], labels [N] or None) -> losses [N]."""


@dataclass(frozen=True)
class ConsolidationResult:
    """What a consolidation left beside the student.

    Parameters
    ----------
    steps
        Optimiser steps of all models, and of everything that a search tried.
    epochs
        Passes over the transfer set that the student was trained for.
    best_epoch
        The epoch whose student was kept, from 1; the last one with ``select: last``.
    accuracy
        The kept student's validation accuracy in [0, 1], or the task's score.
    ensemble_accuracy
        The ensemble's validation accuracy in [0, 1]; None when only logits on the transfer set are known, and
        where the method has no ensemble.
    trials
        What a search tried; empty without one.
    trend
        What the student's loss did at the end, see :func:`kdfed.distill.diagnosis.trend_of`.
    dead_units
        Share of the student's ReLU units in [0, 1] that answer 0 to every input, see
        :func:`kdfed.models.dead_units`; None where it cannot be told.
    warning
        What is wrong with the student and the likely reason, see :mod:`kdfed.distill.diagnosis`; empty when
        all is well.
    """

    steps: int
    epochs: int
    best_epoch: int
    accuracy: float
    ensemble_accuracy: float | None
    trials: tuple[Candidate, ...] = ()
    trend: Trend = ""
    dead_units: float | None = None
    warning: str = ""


@dataclass(frozen=True)
class Candidate:
    """A temperature and a weight that a search tried, and what came of them.

    Parameters
    ----------
    temperature, weight
        Of the distillation term.
    accuracy
        The student's validation accuracy in [0, 1].
    steps
        Optimiser steps that it took.
    """

    temperature: float
    weight: float
    accuracy: float
    steps: int


@dataclass(eq=False)
class Distillation:
    """A student, its teachers and its transfer set.

    Parameters
    ----------
    student
        Trained in place, on the setup's device.
    teachers
        Models, or their logits on the transfer set, [K, N, C] of any float type. They are not changed.
    transfer, validation
        Examples, as far as the method may see them: labels that it has no use for say nothing
        (:meth:`kdfed.data.Examples.without_labels`).
    settings
        Optimiser, epochs, augmentation, selection.
    seed
        Derived seed of order, dropout, augmentation and search.
    setup
        What is learnt, and where.
    label_counts
        Examples of each class that each teacher was trained on, [K, C], possibly noisy; None if not asked.
    on_epoch
        Called after each epoch.
    done, runs
        How many trainings came before this one, and how many there are in all: a search has several.
    validation_logits
        Of teachers that are given by their logits: those on the validation split, [K, M, C]; None where
        nobody knows them.
    """

    student: nn.Module
    teachers: Sequence[nn.Module] | torch.Tensor
    transfer: Examples
    validation: Examples
    settings: DistillationSettings
    seed: int
    setup: Setup
    label_counts: np.ndarray | None = None
    on_epoch: OnEpoch = lambda epoch, epochs, accuracy: None
    done: int = 0
    runs: int = 1
    validation_logits: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.inputs = self.transfer.inputs.to(self.device)
        """Of the transfer set, on the student's device."""
        self.labels_N = self.transfer.labels.to(self.device) if self.settings.labels else None
        """Of the transfer set, on the student's device; None unless the settings ask for labels."""
        self.combined_NC: torch.Tensor | None = None
        """What the last target is on the validation split; None before there is one, and without weights."""
        self.target_NC: torch.Tensor | None = None
        """What the last target is on the transfer set; None before there is one, and where images change."""

    @property
    def task(self) -> Task:
        """What is learnt."""
        return self.setup.task

    @property
    def device(self) -> torch.device:
        """Where the student is trained."""
        return self.setup.device

    @property
    def is_fresh(self) -> bool:
        """Whether the transfer images change from step to step."""
        return bool(self.settings.augmentation) and self.settings.views is None

    @property
    def models(self) -> Sequence[nn.Module]:
        """The teachers.

        Raises
        ------
        KdfedError
            If only their logits were uploaded, or there is none.
        """
        if isinstance(self.teachers, torch.Tensor):
            raise KdfedError("expected the teachers' weights, got their logits; set teachers.upload: weights")
        if not self.teachers:
            raise KdfedError("expected at least one teacher to learn with, got none")
        return self.teachers

    @cached_property
    def stacks(self) -> TeacherStacks | None:
        """The teachers, stacked by architecture; None where only their logits were uploaded."""
        return None if isinstance(self.teachers, torch.Tensor) else TeacherStacks(self.teachers)

    @cached_property
    def validation_KNC(self) -> torch.Tensor | None:  # noqa: N802 - shape suffix
        """The teachers' logits on the validation split; None where only logits were uploaded."""
        if self.validation_logits is not None:
            return uploaded_logits(self.validation_logits, len(self.validation))
        return None if self.stacks is None else self.stacks.logits(self.validation.inputs)

    @cached_property
    def transfer_KNC(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """The teachers' logits on the transfer set."""
        if isinstance(self.teachers, torch.Tensor):
            return uploaded_logits(self.teachers, len(self.transfer))
        assert self.stacks is not None
        return self.stacks.logits(self.transfer.inputs)

    @cached_property
    def judged_N(self) -> torch.Tensor | None:  # noqa: N802 - shape suffix
        """Which validation examples judge ensemble and student, bool [N]; None for all.

        All but those that the ensemble was fitted on.
        """
        ensemble = getattr(self.settings, "ensemble", None)
        return ensemble.unseen_N(self.validation.labels) if isinstance(ensemble, Ensemble) else None

    @cached_property
    def judged(self) -> Examples:
        """The validation examples of :attr:`judged_N`."""
        if self.judged_N is None:
            return self.validation
        inputs, labels_N = self.validation.inputs, self.validation.labels
        mask_N = self.judged_N.to(labels_N.device)
        return replace(self.validation, inputs=inputs[mask_N], labels=labels_N[mask_N])

    def follow(self, target_of: TargetOf, losses_of: LossesOf) -> ConsolidationResult:
        """Train the student towards a target that is made of the teachers' logits.

        Parameters
        ----------
        target_of
            Returns what the student follows. Called for the whole transfer set, or for each batch where its
            images change from step to step; and for the validation split, without labels.
        losses_of
            Returns the loss of every example.

        Returns
        -------
        ConsolidationResult
            Steps, and the accuracies of student and target.
        """
        ensemble_accuracy = None
        if self.validation_KNC is not None:
            self.combined_NC = target_of(self.validation_KNC, self.validation.inputs, None).cpu()
            judged_NC = self.combined_NC if self.judged_N is None else self.combined_NC[self.judged_N]
            ensemble_accuracy = self.task.score(judged_NC, self.judged.labels.cpu())
        batch_of = self._batches(target_of)

        def batch_loss(index: torch.Tensor) -> torch.Tensor:
            inputs, target_NC = batch_of(index)
            labels_N = None if self.labels_N is None else self.labels_N[index]
            return losses_of(self.student(inputs), target_NC, labels_N).mean()

        return self.train(batch_loss, ensemble_accuracy=ensemble_accuracy)

    def _batches(self, target_of: TargetOf) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        stacks = self.stacks
        if stacks is None or not self.is_fresh:
            target_NC = target_of(self.transfer_KNC, self.inputs, self.labels_N).to(self.device)
            self.target_NC = target_NC
            return lambda index: (self.inputs[index], target_NC[index])
        generator = torch_generator(self.seed, "augmentation")

        def batch_of(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            changed = augment(self.inputs[index], self.settings.augmentation, generator)
            labels_N = None if self.labels_N is None else self.labels_N[index]
            return changed, target_of(stacks.logits(changed), changed, labels_N).to(self.device)

        return batch_of

    def train(
        self,
        batch_loss: Callable[[torch.Tensor], torch.Tensor],
        peers: Sequence[nn.Module] = (),
        optimisers: Sequence[Optimiser] = (),
        ensemble_accuracy: float | None = None,
    ) -> ConsolidationResult:
        """Minimise a loss over the transfer set.

        Parameters
        ----------
        batch_loss
            Indices into the transfer set, int64 [B] on the student's device -> a scalar.
        peers
            Other models that ``batch_loss`` trains.
        optimisers
            Of the peers; they follow the student's schedule.
        ensemble_accuracy
            For the result.
        """
        settings, student = self.settings, self.student

        def schedule(done: float, step: float) -> float:
            factor = warm_up(done, step, settings.warm_up)
            factor *= cosine(done) if settings.schedule == "cosine" else 1.0
            for optimiser in optimisers:
                optimiser.lr = settings.lr * factor
            return factor

        steps, best_epoch, best_accuracy, best_state = 0, settings.epochs, -math.inf, None
        means = []
        with torch_seed(self.seed):
            training = epochs(
                student,
                len(self.transfer),
                settings,
                batch_loss,
                self.seed,
                schedule=schedule,
                clip=settings.clip,
                peers=peers,
            )
            for epoch, (losses, sizes) in enumerate(training, start=1):
                steps += len(sizes)
                means.append(torch.stack(losses).mean())
                measured = None
                if settings.select == "best" or epoch == settings.epochs:
                    measured, _ = evaluate(student, self.judged, self.task)
                    if settings.select == "last":
                        best_accuracy = measured
                    elif measured > best_accuracy:
                        best_epoch, best_accuracy, best_state = epoch, measured, state_of(student)
                done = self.done * settings.epochs + epoch
                self.on_epoch(done, self.runs * settings.epochs, measured)
        if best_state is not None:
            load_state(student, best_state)
        trend = trend_of(torch.stack(means).tolist())
        return ConsolidationResult(
            steps, settings.epochs, best_epoch, best_accuracy, ensemble_accuracy, trend=trend
        )
