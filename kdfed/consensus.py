r"""The consensus of participants that exchange logits, and the loss of training towards it.

Both methods compare models by their outputs on public examples. The server combines the participants' logits
into a consensus. Every participant then digests it: its model is trained towards it on the same examples.

============ ============================================= =====================================
\            consensus                                     loss of digesting it
============ ============================================= =====================================
``fedmd``    the mean of the logits                        mean absolute distance of the logits
``ds_fl``    :math:`\mathrm{softmax}(\bar p / T)`, of the  cross entropy
             mean :math:`\bar p` of the probabilities
============ ============================================= =====================================

Shape suffixes: K participants, N examples, C classes.

References
----------
Li and Wang 2019, "FedMD: Heterogenous Federated Learning via Model Distillation", arXiv 1910.03581,
algorithm 1; the loss is that of the authors' code.
Itahara et al. 2021, "Distillation-Based Semi-Supervised Federated Learning for Communication-Efficient
Collaborative Training with Non-IID Private Data", arXiv 2008.06180, section 3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from kdfed.local import LocalLoss
from kdfed.named import load_named
from kdfed.seeding import numpy_generator


def mean_logits(logits_KNC: torch.Tensor) -> torch.Tensor:
    """Return the consensus of FedMD: the mean of the participants' logits, [N, C]."""
    return logits_KNC.mean(0)


def entropy_reduction(logits_KNC: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return the consensus of DS-FL: :math:`\mathrm{softmax}(\bar p / T)`, [N, C].

    Parameters
    ----------
    logits_KNC
        The participants' logits, float [K, N, C].
    temperature
        T, above 0. What is divided are probabilities: at 0.1 the consensus is surer than their mean, at 1
        nearly uniform.

    Examples
    --------
    >>> logits = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]], [[1.0, 0.0]]])
    >>> [round(p, 3) for p in entropy_reduction(logits, temperature=0.1)[0].tolist()]
    [0.824, 0.176]
    """
    mean_NC = torch.softmax(logits_KNC, dim=2).mean(0)
    return torch.softmax(mean_NC / temperature, dim=1)


def _distances(inputs: torch.Tensor, logits_NC: torch.Tensor, consensus_NC: torch.Tensor) -> torch.Tensor:
    return (logits_NC - consensus_NC).abs().mean(1)


def _soft_cross_entropies(
    inputs: torch.Tensor, logits_NC: torch.Tensor, consensus_NC: torch.Tensor
) -> torch.Tensor:
    return functional.cross_entropy(logits_NC, consensus_NC, reduction="none")


DIGESTS: dict[str, LocalLoss] = {
    "fedmd": LocalLoss(_distances),
    "ds_fl": LocalLoss(_soft_cross_entropies),
}
"""Strategy -> the loss of digesting its consensus [N, C], which takes the place of the labels."""


def digest_loss(name: str) -> LocalLoss:
    """Return the loss of digesting a consensus: of :data:`DIGESTS`, or a user's ``package.module:name``.

    Raises
    ------
    NamedError
        If the name stands for no function (inputs [N, ...], logits [N, C], consensus [N, C]) -> losses [N].
    """
    return DIGESTS[name] if name in DIGESTS else LocalLoss(load_named(name))


def public_indices(seed: int, server_round: int, held: int, images: int | None) -> np.ndarray:
    """Return the indices of a round's public examples: the same for the server and every participant.

    Parameters
    ----------
    seed
        The run's seed.
    server_round
        The round, from 1.
    held
        How many public examples there are.
    images
        How many of them are drawn, without replacement. None: all.

    Returns
    -------
    numpy.ndarray
        int64, rising.
    """
    if images is None:
        return np.arange(held)
    drawn: np.ndarray = np.sort(numpy_generator(seed, "public", server_round).permutation(held)[:images])
    return drawn
