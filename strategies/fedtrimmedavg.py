"""Coordinate-wise trimmed mean: Yin et al. 2018, arXiv 1803.01498."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from flwr.serverapp.strategy import FedTrimmedAvg, Strategy
from pydantic import Field

from kdfed.server import ServerBase
from strategies.arm_config import ArmConfig


class FedTrimmedAvgServer(ServerBase):
    """Coordinate-wise trimmed mean (Yin et al. 2018)."""

    strategy: Literal["fedtrimmedavg"] = "fedtrimmedavg"
    """The strategy."""
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share cut off at each end, in [0, 0.5)."""

    uses_server_labels: ClassVar[bool | None] = False

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return FedTrimmedAvg(**config.flower, beta=self.beta)
