r"""The ensemble ``mean-logits``: :math:`\mathrm{softmax}(\frac{1}{K} \sum_k t_k / T)`, as FedDF does.

Shape suffixes: K teachers, N examples, C classes.

References
----------
Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion", arXiv 2006.07242, equation 2.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from kdfed.ensembles.ensemble import Ensemble


class MeanLogits(Ensemble):
    """Softmax of the mean of the teachers' logits."""

    ensemble: Literal["mean-logits"] = "mean-logits"
    """The ensemble."""

    needs_classes: ClassVar[str] = ""

    def target(
        self, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the softmax of the mean of the logits, [N, C]."""
        return torch.softmax(logits_KNC.mean(0) / temperature, dim=1)
