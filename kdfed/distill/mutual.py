r"""Deep mutual learning (DML): models that teach each other, all of them trained.

Model i of M minimises

.. math:: \mathrm{CE}(z_i, y) + \frac{1}{M - 1} \sum_{j \ne i} \mathrm{KL}(p_j \,\|\, p_i)

with :math:`p = \mathrm{softmax}(z)`; without labels only the second term exists. Architectures may differ.

Deviation: all models step on the same outputs of a batch, where the source updates one after the other and
asks the first again before it updates the second. That would double the forward passes.

Shape suffixes: N examples, C classes.

References
----------
Zhang et al. 2018, "Deep Mutual Learning", arXiv 1706.00384, equations 3, 5 and 8.
Shen et al. 2020, "Federated Mutual Learning", arXiv 2006.16765: a participant's two models, with weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def losses(logits_NC: Sequence[torch.Tensor], labels_N: torch.Tensor | None) -> list[torch.Tensor]:
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
    >>> [round(loss.item(), 3) for loss in losses([one, two], None)]
    [0.328, 0.434]
    """
    logs = [functional.log_softmax(values, dim=1) for values in logits_NC]
    result = []
    for own, log_NC in enumerate(logs):
        others = [
            functional.kl_div(log_NC, peer.detach(), reduction="batchmean", log_target=True)
            for place, peer in enumerate(logs)
            if place != own
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
