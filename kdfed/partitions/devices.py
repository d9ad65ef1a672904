"""The partition ``devices``: each participant is a device that has its examples already.

Nothing is dealt. Who is there shows at hello, and stands in ``roster.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from kdfed.errors import DataError
from kdfed.partitions.scheme import PartitionBase
from kdfed.settings import DEVICES, PositiveInt
from kdfed.thing import Refusal

if TYPE_CHECKING:
    from kdfed.data import PreparedData


class DevicesPartition(PartitionBase):
    """Each participant is a device with data of its own."""

    kind: Literal["devices"] = "devices"
    """The data distribution."""
    participants: PositiveInt
    """How many devices take part. One more is refused; where one never comes, its slot stays empty."""
    min_examples: PositiveInt = 1
    """A device that holds fewer is refused."""

    needs_classes: ClassVar[str] = ""

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse data of another source."""
        if arm.data.source != DEVICES:
            yield Refusal(
                ".kind",
                f"'devices' needs data.source '{DEVICES}', got {arm.data.source!r}; set it, or another kind",
                ("data.source",),
            )

    def in_data(self, data: PreparedData) -> Self:
        """Refuse data that hold everybody's examples, or nobody's: there is nothing to deal.

        Raises
        ------
        DataError
            Always.
        """
        raise DataError(NOTHING_TO_DEAL, "partition.kind")

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Refuse to deal: devices have their examples already.

        Raises
        ------
        DataError
            Always.
        """
        raise DataError(NOTHING_TO_DEAL, "partition.kind")


NOTHING_TO_DEAL = (
    "expected a partition that deals examples, got 'devices', whose participants have theirs already: "
    "start it with `flwr run` on a SuperLink, whose SuperNodes are the devices; to simulate it, use a data "
    "set that holds everybody's examples, and partition: {kind: column}"
)
"""What a simulation answers."""
