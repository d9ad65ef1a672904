r"""How several teachers' logits become one target: probabilities at temperature T.

Below, :math:`p_k = \mathrm{softmax}(t_k / T)` are the probabilities of teacher k with logits
:math:`t_k`. One teacher alone is its own target in every ensemble, and the order of teachers does not matter.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from kdfed.errors import KdfedError, unknown

ENSEMBLES: dict[str, str] = {
    "mean-logits": "softmax of the mean of the teachers' logits",
    "mean-probabilities": "mean of the teachers' probabilities",
    "label-counts": "each class from the teachers that were trained on it, by their label counts",
    "confidence": "each example from the teachers that are sure of it (1 - normalised entropy)",
    "validated": "each class from the teachers that know it, by their F1 score on the validation split",
}
"""What can stand in ``consolidation.ensemble``."""


def mean_logits(logits_KNC: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return :math:`\mathrm{softmax}(\frac{1}{K} \sum_k t_k / T)`, as FedDF does.

    References
    ----------
    Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion", arXiv 2006.07242, equation 2.
    """
    return torch.softmax(logits_KNC.mean(0) / temperature, dim=1)


def mean_probabilities(logits_KNC: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return :math:`\frac{1}{K} \sum_k p_k`."""
    return torch.softmax(logits_KNC / temperature, dim=2).mean(0)


def confidence(logits_KNC: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return the mean of the teachers' probabilities, weighted per example by their confidence.

    .. math:: \sum_k w_k(x)\,p_k(x), \quad w_k(x) \propto 1 - H(\mathrm{softmax}(t_k(x))) / \log C

    with the entropy H at temperature 1. Where no teacher has any confidence, all weigh the same.

    References
    ----------
    The idea of FedET (Cho et al. 2022, arXiv 2204.12703), which takes the variance of the logits instead.
    """
    log_probabilities_KNC = torch.log_softmax(logits_KNC, dim=2)
    entropy_KN = -torch.xlogy(log_probabilities_KNC.exp(), log_probabilities_KNC.exp()).sum(2)
    classes = logits_KNC.shape[2]
    confidence_KN = (1 - entropy_KN / math.log(max(classes, 2))).clamp_min(0)
    weights_KN = _shares(confidence_KN)
    return (weights_KN.unsqueeze(2) * torch.softmax(logits_KNC / temperature, dim=2)).sum(0)


def class_weighted(logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor) -> torch.Tensor:
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
        n, 0 or larger, [K, C]: label counts, or scores of :func:`validated_scores`.
    """
    log_weights_KC = _shares(scores_KC.double()).to(logits_KNC).log()
    log_probabilities_KNC = torch.log_softmax(logits_KNC / temperature, dim=2)
    return torch.softmax(torch.logsumexp(log_probabilities_KNC + log_weights_KC.unsqueeze(1), dim=0), dim=1)


def _shares(scores: torch.Tensor) -> torch.Tensor:
    """Scale scores [K, ...] to sum 1 over K; where all are 0, uniformly."""
    total = scores.sum(0, keepdim=True)
    return torch.where(total > 0, scores / total, torch.full_like(scores, 1 / len(scores)))


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


UNWEIGHTED: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "mean-logits": mean_logits,
    "mean-probabilities": mean_probabilities,
    "confidence": confidence,
}
"""The ensembles that need nothing but logits."""

WEIGHTED = ("label-counts", "validated")
"""The ensembles that are :func:`class_weighted` by scores."""


def combine(
    name: str, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the target of the ensemble with this name: probabilities [N, C].

    Parameters
    ----------
    name
        A key of :data:`ENSEMBLES`.
    logits_KNC
        Logits, float [K, N, C].
    temperature
        T, above 0.
    scores_KC
        For ``label-counts`` the counts, for ``validated`` the scores of :func:`validated_scores`.

    Raises
    ------
    KdfedError
        If there is no such ensemble, or it needs scores [K, C] and does not get them.
    """
    if name in UNWEIGHTED:
        return UNWEIGHTED[name](logits_KNC, temperature)
    if name not in WEIGHTED:
        raise unknown("ensemble", name, ENSEMBLES, "kdfed.ensemble")
    expected = (logits_KNC.shape[0], logits_KNC.shape[2])
    if scores_KC is None or tuple(scores_KC.shape) != expected:
        got = "none" if scores_KC is None else f"shape {tuple(scores_KC.shape)}"
        raise KdfedError(
            f"ensemble {name!r} needs one score per teacher and class, shape {expected}, got {got}"
        )
    return class_weighted(logits_KNC, temperature, scores_KC)


def add_laplace_noise(counts: np.ndarray, epsilon: float, generator: np.random.Generator) -> np.ndarray:
    """Return label counts with Laplace noise of scale 1 / epsilon, clipped at 0.

    One example more or less changes one count by one, so the noisy counts are epsilon-differentially
    private; clipping does not change that.

    Parameters
    ----------
    counts
        Examples per class, [C].
    epsilon
        Privacy budget, above 0; smaller is noisier.
    generator
        Source of the noise.

    Returns
    -------
    numpy.ndarray
        float64, same shape, 0 or larger.

    References
    ----------
    Dwork and Roth 2014, "The Algorithmic Foundations of Differential Privacy", theorem 3.6.
    """
    if epsilon <= 0:
        raise KdfedError(f"expected an epsilon above 0, got {epsilon}")
    noise = generator.laplace(scale=1 / epsilon, size=counts.shape)
    return np.maximum(counts + noise, 0.0)
