r"""The ensemble ``confidence``: the teachers' probabilities, weighted per example by their confidence.

.. math:: \sum_k w_k(x)\,p_k(x), \quad w_k(x) \propto 1 - H(\mathrm{softmax}(t_k(x))) / \log C

with the entropy H at temperature 1. Where no teacher has any confidence, all weigh the same.

Shape suffixes: K teachers, N examples, C classes.

References
----------
The idea of FedET (Cho et al. 2022, arXiv 2204.12703), which takes the variance of the logits instead.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from kdfed.ensembles.ensemble import Ensemble, shares


class Confidence(Ensemble):
    """Each example from the teachers that are sure of it (1 - normalised entropy)."""

    ensemble: Literal["confidence"] = "confidence"
    """The ensemble."""

    def target(
        self, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean of the probabilities, weighted by confidence, [N, C]."""
        log_probabilities_KNC = torch.log_softmax(logits_KNC, dim=2)
        entropy_KN = -torch.xlogy(log_probabilities_KNC.exp(), log_probabilities_KNC.exp()).sum(2)
        classes = logits_KNC.shape[2]
        confidence_KN = (1 - entropy_KN / math.log(max(classes, 2))).clamp_min(0)
        weights_KN = shares(confidence_KN)
        return (weights_KN.unsqueeze(2) * torch.softmax(logits_KNC / temperature, dim=2)).sum(0)
