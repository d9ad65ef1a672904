"""FedMD: participants of any architecture, who exchange logits on public examples instead of weights.

In a round a participant digests the mean of all logits of the round before, then trains on its own examples
("revisit"), and sends its logits; :mod:`strategies.logits` has the messages.

Deviations from the source: participants do not train on labels of the public examples first, which they never
get; they digest at the start of a round what the round before agreed on, so that one exchange a round is
enough; and the server distils the consensus into a model of its own, which is evaluated like that of every
other strategy (the source evaluates the participants').

References
----------
Li and Wang 2019, "FedMD: Heterogenous Federated Learning via Model Distillation", arXiv 1910.03581,
algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from flwr.serverapp.strategy import Strategy

from kdfed.consensus import mean_logits
from strategies.arm_config import ArmConfig
from strategies.logits import LogitsServer, LogitsStrategy


class FedMDServer(LogitsServer):
    """The mean of the logits is the consensus (Li and Wang 2019)."""

    strategy: Literal["fedmd"] = "fedmd"
    """The strategy."""

    digest_loss: ClassVar[str] = "fedmd"

    def build(self, config: ArmConfig) -> Strategy:
        """Return FedMD."""
        return FedMD(config, **config.flower)


class FedMD(LogitsStrategy):
    """The consensus is the mean of the logits."""

    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Return :func:`kdfed.consensus.mean_logits`."""
        return mean_logits(logits)
