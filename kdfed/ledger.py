"""What an arm cost, per phase and participant.

The ledger counts logical messages: the bytes that one device alone would exchange, whatever an engine packs
together. Rules of counting:

- an exchange is one server -> participants -> server trip; hello is none, but its bytes count;
- a participant upload is one participant's reply in one exchange;
- a client evaluation trip is counted apart: it is in no total.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

HELLO = "hello"
"""The phase of which only the bytes count."""

EVALUATE = "evaluate"
"""The phase that is counted apart."""


@dataclass(frozen=True)
class Costs:
    """What something cost; costs add up, ``Costs()`` is nothing.

    Parameters
    ----------
    exchanges
        Server -> participants -> server trips.
    participant_uploads
        Replies of participants.
    bytes_up, bytes_down
        Bytes from participants, and to them.
    local_steps
        Optimiser steps of all participants together.
    """

    exchanges: int = 0
    participant_uploads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    local_steps: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.exchanges + other.exchanges,
            self.participant_uploads + other.participant_uploads,
            self.bytes_up + other.bytes_up,
            self.bytes_down + other.bytes_down,
            self.local_steps + other.local_steps,
        )


class Ledger:
    """Counts the messages of one arm.

    Phases are named freely; ``hello`` and ``evaluate`` are counted by the rules of this module.
    """

    def __init__(self) -> None:
        self._opened: Counter[str] = Counter()
        self._entries: dict[tuple[str, int], Costs] = {}

    def open_exchange(self, phase: str) -> None:
        """Count one trip of the server to its participants and back.

        Raises
        ------
        ValueError
            For hello, which is no exchange.
        """
        if phase == HELLO:
            raise ValueError("hello is no exchange: expected another phase, such as 'teachers' or 'rounds'")
        self._opened[phase] += 1

    def down(self, phase: str, participant: int, count: int) -> None:
        """Count the ``count`` bytes of one message to a participant."""
        self._add(phase, participant, Costs(bytes_down=count))

    def up(self, phase: str, participant: int, count: int, local_steps: int) -> None:
        """Count the ``count`` bytes of one participant's reply, and the optimiser steps behind it."""
        uploads = 0 if phase == HELLO else 1
        cost = Costs(participant_uploads=uploads, bytes_up=count, local_steps=local_steps)
        self._add(phase, participant, cost)

    def _add(self, phase: str, participant: int, cost: Costs) -> None:
        key = (phase, participant)
        self._entries[key] = self._entries.get(key, Costs()) + cost

    def totals(self) -> Costs:
        """Return what the arm cost so far, client evaluation left out."""
        return sum((cost for phase, cost in self.by_phase().items() if phase != EVALUATE), Costs())

    def by_phase(self) -> dict[str, Costs]:
        """Return the costs of each phase, client evaluation included."""
        phases = {phase: Costs(exchanges=trips) for phase, trips in self._opened.items()}
        for (phase, _), cost in self._entries.items():
            phases[phase] = phases.get(phase, Costs()) + cost
        return phases

    def by_participant(self) -> dict[int, Costs]:
        """Return each participant's share of the totals, in participant order.

        An exchange is everybody's: it is no participant's share, and stays 0 here.
        """
        shares: dict[int, Costs] = {}
        for (phase, participant), cost in self._entries.items():
            if phase != EVALUATE:
                shares[participant] = shares.get(participant, Costs()) + cost
        return dict(sorted(shares.items()))
