"""The transfer set ``union``: everybody's examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from kdfed.transfer_sets.transfer_set import HeldSet


class UnionSet(HeldSet):
    """The student's own examples and its teachers'; in a study only."""

    transfer: Literal["union"] = "union"
    """The transfer set."""

    in_studies_only: ClassVar[bool] = True

    def indices(self, public: np.ndarray, student: np.ndarray, teachers: Sequence[np.ndarray]) -> np.ndarray:
        """Return those of the student and its teachers."""
        return np.concatenate([student, *teachers])
