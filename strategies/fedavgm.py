"""FedAvgM: Hsu et al. 2019, arXiv 1909.06335, section 5."""

from __future__ import annotations

from typing import ClassVar, Literal

from flwr.serverapp.strategy import FedAvgM, Strategy

from kdfed.server import ServerBase
from kdfed.settings import Momentum, Rate
from strategies.arm_config import ArmConfig


class FedAvgMServer(ServerBase):
    """FedAvg with server momentum (Hsu et al. 2019)."""

    strategy: Literal["fedavgm"] = "fedavgm"
    """The strategy."""
    server_learning_rate: Rate = 1.0
    """Server step size, above 0."""
    server_momentum: Momentum = 0.9
    """Server momentum in [0, 1)."""

    uses_server_labels: ClassVar[bool | None] = False

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return FedAvgM(
            **config.flower,
            server_learning_rate=self.server_learning_rate,
            server_momentum=self.server_momentum,
        )
