"""The transfer set ``teacher``: the teachers' examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from kdfed.transfer_sets.transfer_set import HeldSet


class TeacherSet(HeldSet):
    """The examples of its teachers; in a study only."""

    transfer: Literal["teacher"] = "teacher"
    """The transfer set."""

    in_studies_only: ClassVar[bool] = True

    def indices(self, public: np.ndarray, student: np.ndarray, teachers: Sequence[np.ndarray]) -> np.ndarray:
        """Return those of the teachers."""
        return np.concatenate(teachers)
