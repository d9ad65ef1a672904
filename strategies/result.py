"""What an arm leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.serverapp.strategy import Result

from kdfed.closed_form import Refit
from kdfed.distill import ConsolidationResult
from kdfed.records import RoundRecord, Stopped


@dataclass
class ArmResult(Result):
    """Flower's result, and what kdfed adds to it.

    Parameters
    ----------
    records
        One per evaluation; the first is the start.
    stopped
        Why the arm ended: ``horizon``, ``target``, ``plateau`` or ``listener``.
    consolidation
        What the consolidation took; None without one.
    refits
        What became of each refit of a head in closed form.
    """

    records: list[RoundRecord] = field(default_factory=list)
    stopped: Stopped = "horizon"
    consolidation: ConsolidationResult | None = None
    refits: list[Refit] = field(default_factory=list)
