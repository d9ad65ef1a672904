"""The ensemble ``validated``: classes weighted by the teachers' F1 scores on the validation split.

See :func:`~kdfed.ensembles.ensemble.class_weighted`.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from kdfed.ensembles.ensemble import Ensemble, class_weighted
from kdfed.thing import Refusal


class Validated(Ensemble):
    """Each class from the teachers that know it, by their F1 score on the validation split."""

    ensemble: Literal["validated"] = "validated"
    """The ensemble."""

    needs_validation: ClassVar[bool] = True

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for the teachers' weights."""
        if arm.teachers.upload == "logits":
            yield Refusal(
                ".ensemble",
                "'validated' runs teachers on the validation split and needs teachers.upload 'weights'",
                ("teachers.upload",),
            )

    def target(
        self, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the probabilities, weighted per class by scores, [N, C]."""
        return class_weighted(logits_KNC, temperature, scores_KC)

    def scores(
        self, validation_KNC: torch.Tensor | None, labels_N: torch.Tensor, label_counts: np.ndarray | None
    ) -> torch.Tensor | None:
        """Return the F1 scores, [K, C]; see :func:`validated_scores`."""
        return None if validation_KNC is None else validated_scores(validation_KNC, labels_N)


def validated_scores(logits_KNC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    r"""Return each teacher's F1 score in each class on a labelled split.

    .. math:: n_{kc} = 2\,\mathrm{TP}_{kc} / (\mathrm{predicted}_{kc} + \mathrm{labelled}_{c})

    F1 rather than recall: a teacher that answers c to everything has recall 1 in c.

    Parameters
    ----------
    logits_KNC
        Logits on the split, float [K, N, C].
    labels_N
        True classes, int64 [N].

    Returns
    -------
    torch.Tensor
        Scores in [0, 1], float64 [K, C]; 0 for a class that a teacher never gets right.
    """
    classes = logits_KNC.shape[2]
    predicted_KNC = functional.one_hot(logits_KNC.argmax(2), classes).double()
    labelled_NC = functional.one_hot(labels_N, classes).double()
    right_KC = (predicted_KNC * labelled_NC).sum(1)
    either_KC = predicted_KNC.sum(1) + labelled_NC.sum(0)
    return 2 * right_KC / either_KC.clamp_min(1)
