"""When a curve has reached a target, and when it is flat.

A curve is the validation accuracy in [0, 1] by round: ``curve[0]`` is the start, before the first federated
round, so a target can be reached in 0 rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TOLERANCE = 1e-9
"""Accuracies are fractions of a few thousand examples; below this, two of them are the same number."""


def first_hit(curve: Sequence[float], target: float) -> int | None:
    """Return the first round whose evaluation reaches the target.

    Parameters
    ----------
    curve
        Accuracies in [0, 1] by round.
    target
        Accuracy in (0, 1].

    Returns
    -------
    int or None
        The smallest r with ``curve[r] >= target``.

    Examples
    --------
    >>> first_hit([0.1, 0.9, 0.5, 0.9], 0.8)
    1
    """
    return sustained_hit(curve, target, window=1)


def sustained_hit(curve: Sequence[float], target: float, window: int = 3) -> int | None:
    """Return the first round from which the mean of ``window`` evaluations reaches the target.

    One lucky evaluation of a noisy curve is no hit.

    Parameters
    ----------
    curve
        Accuracies in [0, 1] by round.
    target
        Accuracy in (0, 1].
    window
        Evaluations in the mean, at least 1; all of them must exist.

    Returns
    -------
    int or None
        The smallest r with ``mean(curve[r], ..., curve[r + window - 1]) >= target``.

    Examples
    --------
    >>> sustained_hit([0.1, 0.9, 0.5, 0.9, 0.8, 0.8], 0.8)
    3
    """
    for start in range(len(curve) - window + 1):
        if math.fsum(curve[start : start + window]) / window >= target - TOLERANCE:
            return start
    return None


def plateau(curve: Sequence[float], rounds: int, min_delta: float) -> int | None:
    """Return the first round from which the best accuracy hardly rises any more.

    Parameters
    ----------
    curve
        Accuracies in [0, 1] by round.
    rounds
        For how many rounds it must not rise, at least 1; all of them must exist.
    min_delta
        What counts as a rise is more than this, in [0, 1).

    Returns
    -------
    int or None
        The smallest r with ``best(r + rounds) - best(r) <= min_delta``, where best(r) is the highest of
        ``curve[0], ..., curve[r]``. It is known only ``rounds`` rounds later.

    Examples
    --------
    >>> plateau([0.1, 0.5, 0.7, 0.7, 0.69], rounds=2, min_delta=0.01)
    2
    """
    for start in range(len(curve) - rounds):
        rise = max(curve[: start + rounds + 1]) - max(curve[: start + 1])
        if rise <= min_delta + TOLERANCE:
            return start
    return None


UNREACHABLE = 2.0
"""A target above every accuracy and R²."""


def resolve_target(target: float | str, baseline_best: float) -> float:
    """Turn a target into an accuracy.

    Parameters
    ----------
    target
        An accuracy in (0, 1], or a share of the baseline's best such as ``"95%-of-best"``.
    baseline_best
        The highest validation accuracy of the same seed's baseline.

    Returns
    -------
    float
        The accuracy to reach. A share of a best that is not above 0 (an R² can be) says nothing, and nobody
        reaches it: 2.

    Examples
    --------
    >>> resolve_target("50%-of-best", 0.9)
    0.45
    """
    if isinstance(target, str):
        share = float(target.removesuffix("%-of-best")) / 100
        return UNREACHABLE if baseline_best <= 0 else share * baseline_best
    return float(target)
