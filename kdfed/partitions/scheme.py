"""What a partition must provide: examples dealt to participants.

Legend: N examples, P participants, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from kdfed.settings import PositiveInt
from kdfed.thing import Thing

if TYPE_CHECKING:
    from kdfed.data import PreparedData


class PartitionBase(Thing):
    """What every data distribution has."""

    participants: PositiveInt = 20
    """Number of participants."""
    min_examples: PositiveInt = 1
    """Every participant holds at least this many: single examples move from the largest participants,
    and the record says how many."""
    kind: str
    """The data distribution."""

    needs_classes: ClassVar[str] = ""
    keeps_classes: ClassVar[bool] = False
    """Whether ``min-examples`` gives nobody a class, and takes none from anybody."""

    @abstractmethod
    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Deal examples.

        Parameters
        ----------
        labels
            Their classes, int64 [N], in random order; of a regression the bins of its label.
        classes
            Number of classes K.
        generator
            Of every draw.

        Returns
        -------
        sequence of numpy.ndarray
            For each of the P participants, indices into ``labels``, int64, in random order. Nobody shares an
            example; what is left out is nobody's.
        """

    def deal_flat(
        self, labels: np.ndarray, classes: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Deal as :meth:`deal` does: all indices, one participant's after the other's, and sizes [P]."""
        parts = self.deal(labels, classes, generator)
        return np.concatenate(parts), np.array([len(part) for part in parts])

    def in_data(self, data: PreparedData) -> Self:
        """Return the settings with what only the data tell: how many participants there are.

        Raises
        ------
        DataError
            If the data do not have what is dealt by.
        """
        return self

    def dealt_by(self, data: PreparedData) -> tuple[np.ndarray, int]:
        """Return what :meth:`deal` gets as labels, int64 [N] of all examples, and as number of classes.

        Default: the classes; of a regression the bins of its label.
        """
        return data.strata, len(data.strata_names)

    def problem_with(self, labels: np.ndarray, classes: int) -> tuple[str, str] | None:
        """Say why examples cannot be dealt: the key that has to change, and why; None when they can.

        Parameters
        ----------
        labels, classes
            As for :meth:`deal`.
        """
        return None
