"""What an arm cost, per phase.

The ledger counts logical messages: the bytes that one device alone would exchange, whatever an engine packs
together. Rules of counting:

- down count the strategy's arrays and settings; up the participant's arrays and metrics. The optimiser steps
  that it made are one of its metrics (``local-steps``), and count as such. What kdfed puts around them counts
  nothing: who a message is for, who answered, whose data a simulated node uses, warnings;
- down counts, too, the frozen part of a backbone that is not installed with the software, once a participant:
  a device would have to be sent it, whatever a simulation reads from its own disk;
- an exchange is one server -> participants -> server trip; hello is none, but its bytes count;
- a participant upload is one participant's reply in one exchange; a reply that is refused is none, like one
  that failed: its numbers cannot be trusted. One that is right in itself counts, also where it is not used:
  it came late, or its metrics are others than most send;
- a client evaluation trip is counted apart: it is in no total.
"""

from __future__ import annotations

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
        self._phases: dict[str, Costs] = {}

    def open_exchange(self, phase: str) -> None:
        """Count one trip of the server to its participants and back.

        Raises
        ------
        ValueError
            For hello, which is no exchange.
        """
        if phase == HELLO:
            raise ValueError("hello is no exchange: expected another phase, such as 'teachers' or 'rounds'")
        self._add(phase, Costs(exchanges=1))

    def down(self, phase: str, size: int, messages: int = 1) -> None:
        """Count messages to participants, of ``size`` bytes each."""
        self._add(phase, Costs(bytes_down=size * messages))

    def up(self, phase: str, size: int, local_steps: int, replies: int = 1) -> None:
        """Count participants' replies of ``size`` bytes each, and the optimiser steps behind all of them."""
        uploads = 0 if phase == HELLO else replies
        self._add(phase, Costs(participant_uploads=uploads, bytes_up=size * replies, local_steps=local_steps))

    def _add(self, phase: str, cost: Costs) -> None:
        self._phases[phase] = self._phases.get(phase, Costs()) + cost

    def totals(self) -> Costs:
        """Return what the arm cost so far, client evaluation left out."""
        return sum((cost for phase, cost in self._phases.items() if phase != EVALUATE), Costs())

    def by_phase(self) -> dict[str, Costs]:
        """Return the costs of each phase, client evaluation included."""
        return dict(self._phases)
