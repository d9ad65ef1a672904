"""How many labelled examples of the server an arm fits or chooses with."""

from __future__ import annotations

from kdfed.config.experiment import Arm


def server_labels(arm: Arm, validation: int, transfer: int) -> int:
    """Return how many labelled examples of the server an arm fits or chooses with.

    Counted are labels that the start, the strategy or a stop reads: 0 is an arm whose server needs no label.
    Measuring is not counted.

    Parameters
    ----------
    arm
        All keys resolved.
    validation, transfer
        Examples of these splits.
    """
    used = set(arm.server.server_labels())
    if arm.start == "consolidated":
        used |= arm.consolidation.server_labels()
    if arm.start == "server" or arm.rounds.stop_at_target or arm.rounds.plateau.stop:
        used.add("validation")
    return validation * ("validation" in used) + transfer * ("transfer" in used)
