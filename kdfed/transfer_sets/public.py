"""The transfer set ``public``: the held-out transfer split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from kdfed.transfer_sets.transfer_set import HeldSet


class PublicSet(HeldSet):
    """The held-out transfer split, the only one with labels in a federated run."""

    transfer: Literal["public"] = "public"
    """The transfer set."""

    is_public: ClassVar[bool] = True

    def indices(self, public: np.ndarray, student: np.ndarray, teachers: Sequence[np.ndarray]) -> np.ndarray:
        """Return those of the transfer split."""
        return public
