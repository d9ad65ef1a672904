r"""Vanilla knowledge distillation.

.. math:: (1 - w)\,\mathrm{CE}(s, y) + w\,T^2\,\mathrm{KL}(p \,\|\, \mathrm{softmax}(s / T))

with student logits s, labels y, target probabilities p at temperature T (for one teacher with logits t,
:math:`p = \mathrm{softmax}(t / T)`) and weight w. The factor :math:`T^2` keeps the size of the gradient
when T changes; it stands in front of KL with and without labels. Without labels only the second term exists.

Shape suffixes: N examples, C classes.

References
----------
Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

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
