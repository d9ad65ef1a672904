"""Teachers, or their logits, into one student: distillation on the transfer set before the first round.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from kdfed.augmentation import views_of
from kdfed.distill.distillation import ConsolidationResult, Distillation, OnEpoch
from kdfed.distill.method import KDMethod
from kdfed.errors import KdfedError, shown
from kdfed.models import spare_inputs
from kdfed.seeding import torch_generator
from kdfed.setup import Setup

if TYPE_CHECKING:
    from kdfed.data import Examples


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
        Examples on any device, for selection, for ensembles that ask, and for the accuracies in the result.
    settings
        Method, its own settings, optimiser.
    seed
        Derived seed of order, dropout, augmentation and search.
    setup
        Whose loss, score and soft target are used, and where.
    label_counts
        For ensembles that ask: examples per class of each teacher, [K, C], possibly noisy.
    on_epoch
        Called after each epoch with (epoch from 1, epochs, validation accuracy or None). With ``select:
        last`` only the last epoch is evaluated.

    Returns
    -------
    ConsolidationResult
        Steps and accuracies.

    Raises
    ------
    KdfedError
        If there is no teacher, logits do not fit the transfer set, a teacher's logits are not finite,
        features or uploaded logits are to be augmented, a method that trains teachers gets logits, or a
        method, ensemble or temperature is not one of the task's.
    """
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
    work = Distillation(
        student, teachers, transfer, validation, settings, seed, setup, label_counts, on_epoch
    )
    result = settings.distil(work)
    if not isinstance(result, ConsolidationResult):
        raise KdfedError(
            f"method {settings.method!r}: expected distil to return a ConsolidationResult, as work.follow "
            f"and work.train do, got {shown(result)}"
        )
    return result
