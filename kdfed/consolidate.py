"""Teachers, or their logits, into one student: distillation on the transfer set before the first round.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from kdfed.augmentation import views_of
from kdfed.distill.diagnosis import warning_of
from kdfed.distill.distillation import ConsolidationResult, Distillation, OnEpoch
from kdfed.distill.method import KDMethod
from kdfed.errors import KdfedError, shown
from kdfed.models import State, buffer_keys, dead_units, load_state, spare_inputs, state_of
from kdfed.seeding import torch_generator
from kdfed.setup import Setup
from kdfed.shrink_perturb import shrunk
from kdfed.task import CLASSIFICATION
from kdfed.train import evaluate, predict

if TYPE_CHECKING:
    from kdfed.data import Examples

_ASKED = 1024
"""Examples of the validation split, and of the transfer set, on which dead units are looked for, at most."""


def consolidate(
    student: nn.Module,
    teachers: Sequence[nn.Module] | torch.Tensor,
    transfer: Examples,
    validation: Examples,
    settings: KDMethod,
    seed: int,
    *,
    setup: Setup,
    label_counts: np.ndarray | None = None,
    validation_logits: torch.Tensor | None = None,
    fresh: State | None = None,
    on_epoch: OnEpoch = lambda epoch, epochs, accuracy: None,
) -> ConsolidationResult:
    """Distil teachers into a student.

    Parameters
    ----------
    student
        Trained in place, on the setup's device, where it is put. Its weights beforehand are what the method
        ``partitioned`` keeps.
    teachers
        Models on any device, or their logits on the transfer set, [K, N, C] of any float type. They are not
        changed: the method ``mutual`` trains copies.
    transfer
        N examples on any device; the labels are used only with ``settings.labels``.
    validation
        Examples on any device, for the accuracies in the result. Their labels serve selection, search and
        ensembles only where :meth:`~kdfed.distill.method.KDMethod.server_labels` of the settings says so: a
        method that does not say so is not shown them, nor those of the transfer set without ``labels``.
    settings
        Method, its own settings, optimiser.
    seed
        Derived seed of order, dropout, augmentation and search.
    setup
        Whose loss, score and soft target are used, and where.
    label_counts
        For ensembles that ask: examples per class of each teacher, [K, C], possibly noisy.
    validation_logits
        Where the teachers are given by their logits: those on the validation split, [K, M, C]. Default:
        nobody knows them.
    fresh
        Initial weights of the student's architecture, for settings that perturb it.
    on_epoch
        Called after each epoch with (epoch from 1, epochs, validation accuracy or None). With ``select:
        last`` only the last epoch is evaluated.

    Returns
    -------
    ConsolidationResult
        Steps and accuracies, those of the student before it is shrunk and perturbed.

    Raises
    ------
    KdfedError
        If there is no teacher, logits do not fit the transfer set, a teacher's logits are not finite,
        features or uploaded logits are to be augmented, a method that trains teachers gets logits, a method,
        ensemble or temperature is not one of the task's, or there are no fresh weights to perturb with.
    """
    if settings.perturb and fresh is None:
        raise KdfedError(f"perturb {settings.perturb:g} needs fresh initial weights, got none; set it to 0")
    if isinstance(teachers, torch.Tensor) and settings.augmentation:
        raise KdfedError(
            f"augmentation {list(settings.augmentation)} needs teachers' weights: uploaded logits belong to "
            "the images as they are; remove it or set teachers.upload: weights"
        )
    student = student.to(setup.device)
    transfer, validation = transfer.to(setup.device), validation.to(setup.device)
    if settings.views is not None:
        draw = torch_generator(seed, "augmentation")
        transfer = views_of(transfer, settings.augmentation, settings.views, draw)
    for model in (student, *(() if isinstance(teachers, torch.Tensor) else teachers)):
        spare_inputs(model)
    used = settings.server_labels()

    def told(epoch: int, epochs: int, accuracy: float | None) -> None:
        if epoch == epochs and "validation" not in used:
            accuracy, _ = evaluate(student, validation, setup.task)
        on_epoch(epoch, epochs, accuracy)

    work = Distillation(
        student,
        teachers,
        transfer if settings.labels else transfer.without_labels(),
        validation if "validation" in used else validation.without_labels(),
        settings,
        seed,
        setup,
        label_counts,
        told,
        validation_logits=validation_logits,
    )
    result = settings.distil(work)
    if not isinstance(result, ConsolidationResult):
        raise KdfedError(
            f"method {settings.method!r}: expected distil to return a ConsolidationResult, as work.follow "
            f"and work.train do, got {shown(result)}"
        )
    found = _examined(work, result, validation, blind="validation" not in used)
    if (settings.shrink, settings.perturb) != (1, 0):
        state = state_of(student)
        load_state(
            student, shrunk(state, fresh or state, buffer_keys(student), settings.shrink, settings.perturb)
        )
    return found


def _examined(
    work: Distillation, result: ConsolidationResult, validation: Examples, *, blind: bool
) -> ConsolidationResult:
    """Return a result with what only the labels of the validation split tell, and with what is wrong.

    Parameters
    ----------
    work
        As the method left it.
    result
        What the method returned.
    validation
        With its labels.
    blind
        Whether the method saw no labels of it, so that its accuracies say nothing.
    """
    task, student = work.task, work.student
    if blind:
        accuracy, _ = evaluate(student, validation, task)
        labels_N, combined_NC = validation.labels.cpu(), work.combined_NC
        ensemble = None if combined_NC is None else task.score(combined_NC, labels_N)
        result = replace(result, accuracy=accuracy, ensemble_accuracy=ensemble)
    dead = dead_units(student, [validation.inputs[:_ASKED], work.inputs[:_ASKED]])
    agreement = None
    if work.target_NC is not None and len(result.trials) < 2:
        outputs_NC, target_NC = predict(student, work.inputs), work.target_NC.cpu()
        answers_N = target_NC.argmax(1) if task is CLASSIFICATION else target_NC[:, 0]
        agreement = task.score(outputs_NC, answers_N)
    warning = warning_of(
        result.accuracy,
        result.ensemble_accuracy,
        len(work.judged),
        trend=result.trend,
        dead=dead,
        agreement=agreement,
        transfer=len(work.transfer),
    )
    return replace(result, dead_units=None if dead is None else dead.share, warning=warning)
