"""FedAvg: McMahan et al. 2017, arXiv 1602.05629, algorithm 1."""

from __future__ import annotations

from typing import ClassVar, Literal

from flwr.serverapp.strategy import FedAvg, Strategy

from kdfed.server import ServerBase
from strategies.arm_config import ArmConfig


class FedAvgServer(ServerBase):
    """Federated averaging (McMahan et al. 2017)."""

    strategy: Literal["fedavg"] = "fedavg"
    """The strategy."""

    uses_server_labels: ClassVar[bool | None] = False

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return FedAvg(**config.flower)
