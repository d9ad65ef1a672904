"""DS-FL: participants exchange logits on public examples, and the server sharpens their mean.

In a round a participant distils the consensus of the round before, trains on its own examples, and sends its
logits; the server takes the mean of the probabilities, reduces its entropy, and distils it into the global
model, too. :mod:`strategies.logits` has the messages.

Deviations from the source: participants send logits, and the server takes their softmax; they distil at the
start of the next round they are sampled for, so that one exchange a round is enough.

References
----------
Itahara et al. 2021, "Distillation-Based Semi-Supervised Federated Learning for Communication-Efficient
Collaborative Training with Non-IID Private Data", arXiv 2008.06180, algorithm 1 and section 3.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from flwr.serverapp.strategy import Strategy

from kdfed.consensus import entropy_reduction
from kdfed.settings import Temperature
from strategies.arm_config import ArmConfig
from strategies.logits import LogitsServer, LogitsStrategy


class DSFLServer(LogitsServer):
    """The mean of the probabilities, with its entropy reduced, is the consensus (Itahara et al. 2021)."""

    strategy: Literal["ds_fl"] = "ds_fl"
    """The strategy."""
    temperature: Temperature = 0.1
    """Temperature T of the entropy reduction, above 0; it divides probabilities."""

    digest_loss: ClassVar[str] = "ds_fl"

    def build(self, config: ArmConfig) -> Strategy:
        """Return DS-FL."""
        return DSFL(config, **config.flower)


class DSFL(LogitsStrategy):
    """The consensus is the mean of the probabilities, with its entropy reduced."""

    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Return :func:`kdfed.consensus.entropy_reduction`."""
        assert isinstance(self.settings, DSFLServer), self.settings
        return entropy_reduction(logits, self.settings.temperature)
