"""Krum: Blanchard et al. 2017, arXiv 1703.02757."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from flwr.serverapp.strategy import Krum, Strategy
from pydantic import Field

from kdfed.server import ServerBase
from kdfed.thing import Refusal
from strategies.arm_config import ArmConfig


class KrumServer(ServerBase):
    """Krum (Blanchard et al. 2017)."""

    strategy: Literal["krum"] = "krum"
    """The strategy."""
    num_malicious_nodes: Annotated[int, Field(ge=0, le=10**9)] = 0
    """How many participants may lie: fewer than those sampled less 2."""

    uses_server_labels: ClassVar[bool | None] = False

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for enough participants to compare."""
        yield from super().refusals(arm)
        drawn = self.drawn(arm.partition.participants)
        if self.num_malicious_nodes >= drawn - 2:
            yield Refusal(
                ".num-malicious-nodes",
                "Krum compares with the nearest sampled - num-malicious-nodes - 2, and expected at least 1, "
                f"got {drawn} - {self.num_malicious_nodes} - 2; sample more participants or lower it",
                (".sampled", "partition.participants"),
            )

    def build(self, config: ArmConfig) -> Strategy:
        """Return Flower's strategy."""
        return Krum(**config.flower, num_malicious_nodes=self.num_malicious_nodes)
