"""The model with a solved head as the teacher of the one before: its answers, in weights to train on.

Least squares put a head on features as they are, with weights that are as large as small differences between
features ask for. A step at an ordinary rate then moves the layers below by as much: the first round can leave
nothing. Distilled on the transfer set, the same answers come from weights that gradient descent found, and
rounds go on from there.

References
----------
Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from typing import Literal

from kdfed.distill import VanillaConsolidation
from kdfed.ensembles import MeanLogits
from kdfed.settings import DistillationSettings, Momentum, Rate, Temperature


class HeadDistillation(DistillationSettings):
    """How the model with a solved head is distilled, on the transfer set, into the one that it replaced."""

    temperature: Temperature = 1.0
    """Temperature T of the soft targets, above 0."""
    lr: Rate = 0.1
    """Learning rate, above 0."""
    momentum: Momentum = 0.9
    """Momentum in [0, 1), for sgd only; 0 turns it off."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the epochs; ``cosine`` decays to 0."""
    labels: Literal[False] = False
    """The only teacher is the solved model."""

    def method(self) -> VanillaConsolidation:
        """Return the KD method that the distillation is."""
        return VanillaConsolidation.model_construct(ensemble=MeanLogits(), **dict(self))  # checked already

    def server_labels(self) -> frozenset[str]:
        """Return of which of the server's splits it chooses with labels."""
        return self.method().server_labels()
