"""FedProx: Li et al. 2020, arXiv 1812.06127, algorithm 2. The proximal term is the participants'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from flwr.serverapp.strategy import FedProx, Strategy

from kdfed.local import ProximalLocal
from kdfed.server import ServerBase
from kdfed.thing import Refusal
from strategies.arm_config import ArmConfig


class FedProxServer(ServerBase):
    """FedAvg with proximal local training (Li et al. 2020).

    Needs ``local.mode: proximal``, whose ``mu`` it sends.
    """

    strategy: Literal["fedprox"] = "fedprox"
    """The strategy."""

    uses_server_labels: ClassVar[bool | None] = False

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for proximal local training."""
        yield from super().refusals(arm)
        if not isinstance(arm.local, ProximalLocal):
            yield Refusal(
                "local.mode",
                f"expected 'proximal' with strategy 'fedprox', got {arm.local.mode!r}",
                (".strategy",),
            )

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        assert isinstance(config.arm.local, ProximalLocal), config.arm.local
        return FedProx(**config.flower, proximal_mu=config.arm.local.mu)
