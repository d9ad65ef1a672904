r"""The ensemble ``mean-probabilities``: :math:`\frac{1}{K} \sum_k p_k`.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch

from kdfed.ensembles.ensemble import Ensemble


class MeanProbabilities(Ensemble):
    """Mean of the teachers' probabilities."""

    ensemble: Literal["mean-probabilities"] = "mean-probabilities"
    """The ensemble."""

    def target(
        self, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean of the probabilities, [N, C]."""
        return torch.softmax(logits_KNC / temperature, dim=2).mean(0)
