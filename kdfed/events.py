"""What a run reports while it goes on, for progress displays.

Events are not records: nothing in ``rounds.jsonl`` or ``summary.json`` depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["hello", "start", "teachers", "consolidate", "statistics", "rounds", "done", "failed"]


@dataclass(frozen=True)
class Event:
    """One step of one phase of one arm.

    Parameters
    ----------
    arm, seed
        Which run; the empty arm stands for the whole experiment (its ``done`` or ``failed``).
    phase
        ``hello``, ``start`` (a model is trained on the server's own labels), ``teachers``, ``consolidate``,
        ``statistics`` (for a closed-form head), ``rounds``, or ``failed``. A run that was finished earlier,
        and is kept, has ``done`` alone.
    step, steps
        Progress within the phase: epochs of distillation or of the server's own training, or the federated
        round and ``rounds.horizon``.
    accuracy
        Validation accuracy in [0, 1] after this step, where it was measured.
    bytes
        Bytes up and down so far in this arm.
    participant_uploads
        Participant uploads so far in this arm.
    message
        A sentence for people, e.g. why a run failed.
    who
        Whose work is in a round, and who was left out and why, for people; empty where nobody was asked.
    """

    arm: str
    seed: int
    phase: Phase
    step: int = 0
    steps: int = 0
    accuracy: float | None = None
    bytes: int = 0
    participant_uploads: int = 0
    message: str = ""
    who: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the event as a JSON object; ``Event(**object)`` reads it back."""
        return asdict(self)


PROGRESS = "KDFED_PROGRESS"
"""Environment variable: a file to which a ServerApp appends events as JSON lines."""

OVERWRITE = "KDFED_OVERWRITE"
"""Environment variable: set where a ServerApp may replace the records in its run folder."""

FOLDER = "KDFED_FOLDER"
"""Environment variable: the folder of the experiment file, where a ServerApp is given a copy of it."""

OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Drop an event: the default listener."""
