r"""What an ensemble must provide: one target of several teachers' logits, probabilities at temperature T.

Below, :math:`p_k = \mathrm{softmax}(t_k / T)` are the probabilities of teacher k with logits
:math:`t_k`. One teacher alone is its own target in every ensemble, and the order of teachers does not matter.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch

from kdfed.errors import KdfedError
from kdfed.thing import Thing


class Ensemble(Thing):
    """How several teachers' outputs become one target."""

    ensemble: str
    """The ensemble."""

    needs_label_counts: ClassVar[bool] = False
    """Whether it asks teachers for their label counts."""
    needs_validation: ClassVar[bool] = False
    """Whether it runs the teachers on the validation split, for which it needs their weights, and reads its
    labels, which then count as used by the server."""

    @abstractmethod
    def target(
        self, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the target: probabilities, float [N, C].

        Parameters
        ----------
        logits_KNC
            The teachers' logits, float [K, N, C].
        temperature
            T, above 0.
        scores_KC
            What :meth:`scores` returned, [K, C] or [K, ...].
        """

    def scores(
        self, validation_KNC: torch.Tensor | None, labels_N: torch.Tensor, label_counts: np.ndarray | None
    ) -> torch.Tensor | None:
        """Return how well each teacher knows each class, [K, C]; None where the ensemble does not ask.

        An ensemble that learns something else of the teachers returns that, [K, ...], in their order.

        Parameters
        ----------
        validation_KNC
            The teachers' logits on the validation split, float [K, N, C]; None where only logits on the
            transfer set were uploaded.
        labels_N
            Its labels, int64 [N]; they say nothing (-100) unless :attr:`needs_validation`.
        label_counts
            Examples of each class that each teacher was trained on, [K, C], possibly noisy; None unless
            :attr:`needs_label_counts`.
        """
        return None

    def unseen_N(self, labels_N: torch.Tensor) -> torch.Tensor | None:  # noqa: N802 - shape suffix
        """Return the validation examples that :meth:`scores` was not fitted on, bool [N]; None for all.

        They alone judge the ensemble and the student, and choose the student with ``select: best``.

        Parameters
        ----------
        labels_N
            As for :meth:`scores`.
        """
        return None


def shares(scores: torch.Tensor) -> torch.Tensor:
    """Scale scores [K, ...] to sum 1 over K; where all are 0, uniformly."""
    total = scores.sum(0, keepdim=True)
    return torch.where(total > 0, scores / total, torch.full_like(scores, 1 / len(scores)))


def class_weighted(
    logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
) -> torch.Tensor:
    r"""Return the teachers' probabilities, weighted per class and scaled to sum 1.

    .. math:: \propto \sum_k w_{kc}\,p_{kc}, \quad w_{kc} = n_{kc} / \sum_j n_{jc}

    A class that scores 0 with every teacher is weighted uniformly. Computed from logarithms, so that no row
    can vanish.

    Parameters
    ----------
    logits_KNC
        Logits, float [K, N, C].
    temperature
        T, above 0.
    scores_KC
        n, 0 or larger, [K, C].

    Raises
    ------
    KdfedError
        If there is not one score per teacher and class.
    """
    expected = (logits_KNC.shape[0], logits_KNC.shape[2])
    if scores_KC is None or tuple(scores_KC.shape) != expected:
        got = "none" if scores_KC is None else f"shape {tuple(scores_KC.shape)}"
        raise KdfedError(f"expected one score per teacher and class, shape {expected}, got {got}")
    log_weights_KC = shares(scores_KC.double()).to(logits_KNC).log()
    log_probabilities_KNC = torch.log_softmax(logits_KNC / temperature, dim=2)
    return torch.softmax(torch.logsumexp(log_probabilities_KNC + log_weights_KC.unsqueeze(1), dim=0), dim=1)
