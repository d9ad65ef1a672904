"""Sums of many participants, added as they come: the same bits in whatever order they do.

Additions of floats round, so their order would show. Here participants are the leaves of a tree, two and two
together, and the sum of a part of the tree is made when all below it are there. What came in order leaves a
sum for each level, about log2 P of P participants; what is late holds up the sums above it alone.
"""

from __future__ import annotations

from kdfed.closed_form.sums import Sums


class RunningSum:
    """Adds the sums of P participants.

    Parameters
    ----------
    count
        P, 1 or larger.

    Examples
    --------
    >>> total = RunningSum(3)
    >>> total.add(2, sums_of_the_third)  # doctest: +SKIP
    >>> total.add(0, sums_of_the_first)  # doctest: +SKIP
    >>> total.result()  # doctest: +SKIP
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._parts: dict[tuple[int, int], Sums | None] = {}  # by level and place
        self._missing = set(range(count))

    def add(self, place: int, sums: Sums | None) -> None:
        """Add a participant's sums, once.

        Parameters
        ----------
        place
            Of the participant among the P, from 0.
        sums
            None for one that has none.
        """
        self._missing.remove(place)
        level, width = 0, self._count
        while width > 1:
            beside = place ^ 1
            if beside < width:
                if (level, beside) not in self._parts:
                    break
                sums = _added(sums, self._parts.pop((level, beside)))
            level, place, width = level + 1, place // 2, (width + 1) // 2
        self._parts[level, place] = sums

    @property
    def held(self) -> int:
        """How many sums lie in memory."""
        return sum(part is not None for part in self._parts.values())

    def result(self) -> Sums | None:
        """Return the sum of all who were added, and end; None where nobody was."""
        for place in sorted(self._missing):
            self.add(place, None)
        (total,) = self._parts.values()
        return total


def _added(one: Sums | None, other: Sums | None) -> Sums | None:
    """Return the sum of two; either may have nothing. Which comes first does not matter to the bit."""
    if one is None or other is None:
        return one if other is None else other
    return one + other
