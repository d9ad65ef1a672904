"""Losses of distillation in a classification: from a target, and between models that teach each other.

Shape suffixes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def kd_loss(
    student_logits_NC: torch.Tensor,
    target_NC: torch.Tensor,
    labels_N: torch.Tensor | None,
    temperature: float,
    weight: float,
) -> torch.Tensor:
    """Return the distillation loss, the mean over N, in nats.

    Parameters
    ----------
    student_logits_NC
        Student logits, float [N, C].
    target_NC
        Target probabilities at this temperature, float [N, C]; no gradient flows into them.
    labels_N
        True classes, int64 [N], or None on an unlabelled transfer set.
    temperature
        T, above 0.
    weight
        w in [0, 1].

    Returns
    -------
    torch.Tensor
        Scalar; 0 or larger.

    Examples
    --------
    >>> student, target = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    >>> loss = kd_loss(student, target, None, temperature=4.0, weight=1.0)
    >>> round(loss.item(), 3)  # 16 * KL((1/2, 1/2) || softmax(1, 0))
    1.922
    """
    return kd_losses(student_logits_NC, target_NC, labels_N, temperature, weight).mean()


def kd_losses(
    student_logits_NC: torch.Tensor,
    target_NC: torch.Tensor,
    labels_N: torch.Tensor | None,
    temperature: float,
    weight: float,
) -> torch.Tensor:
    """Return the distillation loss of every example, [N], in nats; :func:`kd_loss` is its mean."""
    log_student_NC = functional.log_softmax(student_logits_NC / temperature, dim=1)
    divergence_N = functional.kl_div(log_student_NC, target_NC.detach(), reduction="none").sum(1)
    distillation_N = weight * temperature**2 * divergence_N
    if labels_N is None:
        return distillation_N
    hard_N = functional.cross_entropy(student_logits_NC, labels_N, reduction="none")
    return (1 - weight) * hard_N + distillation_N


def peer_losses(logits_NC: Sequence[torch.Tensor], labels_N: torch.Tensor | None) -> list[torch.Tensor]:
    """Return what each model minimises on a batch, in nats.

    Parameters
    ----------
    logits_NC
        One [N, C] a model, two or more. No gradient flows from a model's loss into its peers.
    labels_N
        True classes, int64 [N], or None on an unlabelled transfer set.

    Returns
    -------
    list of torch.Tensor
        A scalar a model.

    Examples
    --------
    >>> one, two = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> [round(loss.item(), 3) for loss in peer_losses([one, two], None)]
    [0.328, 0.434]
    """
    logs = [functional.log_softmax(values, dim=1) for values in logits_NC]
    result = []
    for own, log_NC in enumerate(logs):
        others = [
            functional.kl_div(log_NC, peer.detach(), reduction="batchmean", log_target=True)
            for index, peer in enumerate(logs)
            if index != own
        ]
        loss = torch.stack(others).mean()
        if labels_N is not None:
            loss = loss + functional.nll_loss(log_NC, labels_N)
        result.append(loss)
    return result


def weighted_losses(
    own_logits_NC: torch.Tensor, peer_logits_NC: torch.Tensor, labels_N: torch.Tensor, weight: float
) -> torch.Tensor:
    r"""Return what one of two models minimises on every example, [N], in nats.

    .. math:: w\,\mathrm{CE}(z, y) + (1 - w)\,\mathrm{KL}(p_\mathrm{peer} \,\|\, p)

    Parameters
    ----------
    own_logits_NC
        The model's logits z, [N, C].
    peer_logits_NC
        The other's, [N, C]; no gradient flows into them.
    labels_N
        True classes, int64 [N].
    weight
        w in [0, 1]. At 1 the other model is not asked.

    Examples
    --------
    >>> own, peer = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> weighted_losses(own, peer, torch.tensor([0]), weight=0.5)  # (ln 2 + 0.328) / 2
    tensor([0.5105])
    """
    log_NC = functional.log_softmax(own_logits_NC, dim=1)
    hard_N = functional.nll_loss(log_NC, labels_N, reduction="none")
    if weight == 1:
        return hard_N
    peer_NC = functional.log_softmax(peer_logits_NC.detach(), dim=1)
    divergence_N = functional.kl_div(log_NC, peer_NC, reduction="none", log_target=True).sum(1)
    return weight * hard_N + (1 - weight) * divergence_N
