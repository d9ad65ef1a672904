"""What is wrong with a student, and why: a sentence for whoever reads the log or the report.

A student is far behind when its validation accuracy is below its ensemble's by more than :data:`FAR`, and by
more than chance gives on so few examples. The likely reason is the first of: a loss that was not finite, dead
units, a loss that rose, or that still falls, a student that does not even follow its ensemble on the transfer
set, and then a transfer set that is too small. Where nobody knows the ensemble's accuracy, nothing is said of
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from kdfed.models import Units

Trend: TypeAlias = Literal["", "falls", "rose", "not finite"]
"""What a loss did; empty where nothing is to be said of it."""

FAR = 0.10
"""Accuracy, or R^2, by which a student that is far behind is worse than its ensemble."""
MANY_DEAD = 0.125
"""Share of dead units that explains why a student is far behind."""
MOST_DEAD = 0.5
"""Share of dead units that is said of any student: what is dead does not learn in federated rounds either."""
FOLLOWS = 0.9
"""Share of the transfer set on which a student that follows its ensemble answers like it."""


def trend_of(losses: Sequence[float]) -> Trend:
    """Say what the mean losses of a training's epochs did.

    Parameters
    ----------
    losses
        One an epoch, at least one.

    Returns
    -------
    str
        ``not finite`` if one was not; ``rose`` if the last fifth of the epochs has more than twice the least
        loss; ``falls`` if it has less than 0.9 of the fifth before; else empty.

    Examples
    --------
    >>> trend_of([4.0, 2.0, 1.0, 0.5]), trend_of([1.0, 0.5, 1.5]), trend_of([2.0, 1.0, 0.99])
    ('falls', 'rose', '')
    """
    if not all(math.isfinite(loss) for loss in losses):
        return "not finite"
    window = max(1, len(losses) // 5)
    end = sum(losses[-window:]) / window
    if end > 2 * min(losses):
        return "rose"
    before = losses[-2 * window : -window]
    return "falls" if before and end < 0.9 * sum(before) / len(before) else ""


def is_far(accuracy: float, ensemble_accuracy: float, examples: int) -> bool:
    r"""Tell whether a student is far behind its ensemble.

    .. math:: a_e - a_s > \max(0.1, \sqrt{3 / N})

    Of N examples on which nearly a third of the answers differ, that is three standard errors.

    Parameters
    ----------
    accuracy, ensemble_accuracy
        On the same examples, in [0, 1].
    examples
        N, at least 1.
    """
    return ensemble_accuracy - accuracy > max(FAR, math.sqrt(3 / examples))


def warning_of(
    accuracy: float,
    ensemble_accuracy: float | None,
    validation: int,
    *,
    trend: Trend,
    dead: Units | None,
    agreement: float | None,
    transfer: int,
) -> str:
    """Say what is wrong with a student, and the likely reason; empty when all is well.

    Parameters
    ----------
    accuracy, ensemble_accuracy
        On the validation split, in [0, 1]; the ensemble's is None where nobody knows it.
    validation
        Examples of the validation split.
    trend
        What the student's loss did.
    dead
        The student's dead units; None where it cannot be told.
    agreement
        Share of the transfer set on which the student answers like its ensemble; None if not known.
    transfer
        Examples of the transfer set.
    """
    units = "" if dead is None else f"{dead.dead} of {dead.of} ReLU units are dead"
    cure = "lower consolidation.lr, or use warm-up and clip"
    if trend == "not finite":
        return f"the student's loss was not finite; {cure}"
    share = 0.0 if dead is None else dead.share
    if ensemble_accuracy is None or not is_far(accuracy, ensemble_accuracy, validation):
        return f"{units}: nothing reaches them any more; {cure}" if share >= MOST_DEAD else ""
    points = round(100 * (ensemble_accuracy - accuracy))
    what = (
        f"the student is {points} points behind its ensemble "
        f"({100 * accuracy:.0f} against {100 * ensemble_accuracy:.0f}%)"
    )
    if share >= MANY_DEAD:
        return f"{what}: {units}; {cure}"
    if trend == "rose":
        return f"{what}: its loss rose in the end; {cure}"
    if trend == "falls":
        return f"{what}: its loss still falls; raise consolidation.epochs"
    if agreement is not None and agreement < FOLLOWS:
        return (
            f"{what}: it follows it on {100 * agreement:.0f}% of the transfer set; raise "
            "consolidation.epochs or lr, or choose a larger model"
        )
    return (
        f"{what}: the transfer set has only {transfer} examples; hold out more (data.splits.transfer), or "
        "use augmentation"
    )
