"""FedAdam: Reddi et al. 2021, arXiv 2003.00295, algorithm 2."""

from __future__ import annotations

from typing import Literal

from flwr.serverapp.strategy import FedAdam, Strategy

from kdfed.settings import Momentum
from strategies.arm_config import ArmConfig
from strategies.fedadagrad import FedAdagradServer


class FedAdamServer(FedAdagradServer):
    """FedAdam: server steps scaled by a moving average of updates (Reddi et al. 2021)."""

    strategy: Literal["fedadam"] = "fedadam"  # type: ignore[assignment]
    """The strategy."""
    beta_1: Momentum = 0.9
    """First moment in [0, 1)."""
    beta_2: Momentum = 0.99
    """Second moment in [0, 1)."""

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return FedAdam(**config.flower, eta=self.eta, tau=self.tau, beta_1=self.beta_1, beta_2=self.beta_2)
