"""The transfer set ``own``: the student's examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from kdfed.transfer_sets.transfer_set import HeldSet


class OwnSet(HeldSet):
    """The student's own examples; in a study only."""

    transfer: Literal["own"] = "own"
    """The transfer set."""

    in_studies_only: ClassVar[bool] = True

    def indices(self, public: np.ndarray, student: np.ndarray, teachers: Sequence[np.ndarray]) -> np.ndarray:
        """Return those of the student."""
        return student
