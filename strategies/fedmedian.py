"""Coordinate-wise median: Yin et al. 2018, arXiv 1803.01498."""

from __future__ import annotations

from typing import ClassVar, Literal

from flwr.serverapp.strategy import FedMedian, Strategy

from kdfed.server import ServerBase
from strategies.arm_config import ArmConfig


class FedMedianServer(ServerBase):
    """Coordinate-wise median (Yin et al. 2018)."""

    strategy: Literal["fedmedian"] = "fedmedian"
    """The strategy."""

    uses_server_labels: ClassVar[bool | None] = False

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return FedMedian(**config.flower)
