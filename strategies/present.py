"""Who is there, as far as a grid must know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def _nothing() -> None:
    """Nobody comes later."""


def _unknown(participant: int) -> str:
    return "no node of this participant"


@dataclass(frozen=True)
class Present:
    """Who is there.

    Parameters
    ----------
    held
        The examples of each participant, int64 [P]; None where nobody told.
    roster
        The node of each participant; None where nodes own nobody.
    update
        Looks for who has come or gone since: called before each exchange, it may change ``held`` and
        ``roster``.
    why_absent
        Says why a participant is in no roster.
    """

    held: np.ndarray | None = None
    roster: dict[int, int] | None = None
    update: Callable[[], None] = _nothing
    why_absent: Callable[[int], str] = _unknown
