r"""Vanilla knowledge distillation.

.. math:: (1 - w)\,\mathrm{CE}(s, y) + w\,T^2\,\mathrm{KL}(p \,\|\, \mathrm{softmax}(s / T))

with student logits s, labels y, target probabilities p at temperature T (for one teacher with logits t,
:math:`p = \mathrm{softmax}(t / T)`) and weight w. The factor :math:`T^2` keeps the size of the gradient
when T changes; it stands in front of KL with and without labels. Without labels only the second term exists.
The loss of other tasks is theirs (:mod:`kdfed.task`).

Shape suffixes: N examples, C classes.

References
----------
Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from kdfed.distill.distillation import ConsolidationResult, Distillation
from kdfed.distill.method import KDMethod
from kdfed.ensembles import AnyEnsemble, MeanProbabilities
from kdfed.settings import Share, Temperature


class VanillaConsolidation(KDMethod):
    """Vanilla KD (Hinton et al. 2015): T^2 times KL from the ensemble of teachers, fixed T and weight."""

    method: Literal["vanilla"] = "vanilla"
    """The KD method."""
    ensemble: AnyEnsemble = MeanProbabilities()
    """How the teachers' outputs become one target."""
    temperature: Temperature = 3.0
    """Temperature T of the distillation term, above 0."""
    weight: Share = 1.0
    """Weight w of the distillation term; 1 - w goes to cross entropy. Below 1 only with ``labels``."""

    needs_classes: ClassVar[str] = ""
    uses_validation_labels: ClassVar[bool | None] = False

    def distil(self, work: Distillation) -> ConsolidationResult:
        """Minimise the task's soft loss towards the ensemble's target."""
        counts, labels_N = work.label_counts, work.validation.labels.cpu()
        scores_KC = self.ensemble.scores(work.validation_KNC, labels_N, counts)

        def target_of(
            logits_KNC: torch.Tensor, inputs: torch.Tensor, labels_N: torch.Tensor | None
        ) -> torch.Tensor:
            return work.task.target(self.ensemble, logits_KNC, self.temperature, scores_KC)

        def losses_of(
            outputs_NC: torch.Tensor, target_NC: torch.Tensor, labels_N: torch.Tensor | None
        ) -> torch.Tensor:
            return work.task.soft_losses(outputs_NC, target_NC, labels_N, self.temperature, self.weight)

        return work.follow(target_of, losses_of)
