"""FedAdagrad: Reddi et al. 2021, arXiv 2003.00295, algorithm 2."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from flwr.serverapp.strategy import FedAdagrad, Strategy
from pydantic import Field

from kdfed.server import ServerBase
from kdfed.settings import Rate
from strategies.arm_config import ArmConfig


class FedAdagradServer(ServerBase):
    """FedAdagrad: server steps scaled by all past updates (Reddi et al. 2021)."""

    strategy: Literal["fedadagrad"] = "fedadagrad"
    """The strategy."""
    eta: Rate = 0.1
    """Server learning rate, above 0."""
    tau: Annotated[float, Field(ge=1e-12, le=1000)] = 1e-3
    """Degree of adaptability, above 0."""

    uses_server_labels: ClassVar[bool | None] = False

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return FedAdagrad(**config.flower, eta=self.eta, tau=self.tau)
