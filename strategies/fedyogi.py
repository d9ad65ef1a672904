"""FedYogi: Reddi et al. 2021, arXiv 2003.00295, algorithm 2."""

from __future__ import annotations

from typing import Literal

from flwr.serverapp.strategy import FedYogi, Strategy

from strategies.arm_config import ArmConfig
from strategies.fedadam import FedAdamServer


class FedYogiServer(FedAdamServer):
    """FedYogi: like FedAdam, with a scale that changes more slowly (Reddi et al. 2021)."""

    strategy: Literal["fedyogi"] = "fedyogi"  # type: ignore[assignment]
    """The strategy."""

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return FedYogi(**config.flower, eta=self.eta, tau=self.tau, beta_1=self.beta_1, beta_2=self.beta_2)
