"""When a curve has reached a target, what it converges to, and when it is flat.

A curve is the accuracy on the evaluation split, in [0, 1], by round: ``curve[0]`` is the start, before the
first federated round, so a target can be reached in 0 rounds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

TOLERANCE = 1e-9
"""Accuracies are fractions of a few thousand examples; below this, two of them are the same number."""

CONVERGENCE = "99%-of-converged"
"""The target whose hit is the rounds to convergence."""

UNREACHABLE = 2.0
"""A target above every accuracy and R²."""

LAST = 10
"""How many of the last evaluations make the converged accuracy."""

AVERAGED = 5
"""How many evaluations are averaged before a curve is called flat."""


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
    return next((r for r, accuracy in enumerate(curve) if accuracy >= target - TOLERANCE), None)


def hit(curve: Sequence[float], target: float) -> int | None:
    """Return the first round whose own evaluation reaches the target, and whose mean with the next two does.

    One lucky evaluation of a noisy curve is no hit, and no round is billed whose model is below the target.

    Parameters
    ----------
    curve
        Accuracies in [0, 1] by round.
    target
        Accuracy in (0, 1].

    Returns
    -------
    int or None
        The smallest r with ``curve[r] >= target`` and ``mean(curve[r], curve[r + 1], curve[r + 2]) >=
        target``; all three must exist.

    Examples
    --------
    >>> hit([0.1, 0.9, 0.5, 0.9, 0.8, 0.8], 0.8)
    3
    >>> hit([0.1, 0.7, 0.9, 0.9, 0.9], 0.8)  # the mean from round 1 on is 0.83, but round 1 is at 0.7
    2
    """
    for r in range(len(curve) - 2):
        if min(curve[r], math.fsum(curve[r : r + 3]) / 3) >= target - TOLERANCE:
            return r
    return None


def converged(curve: Sequence[float]) -> float:
    """Return what a curve converges to: the mean of its last ten evaluations, that of the start left out.

    Parameters
    ----------
    curve
        Accuracies in [0, 1] by round, at least one. Of a start alone, it is the start's.

    Examples
    --------
    >>> converged([0.1, 0.5, 0.7])
    0.6
    """
    last = curve[1:][-LAST:] or curve
    return math.fsum(last) / len(last)


def plateau(curve: Sequence[float], rounds: int = 20, min_delta: float = 0.005) -> int | None:
    """Return the first round at which the curve is known to be flat.

    Parameters
    ----------
    curve
        Accuracies in [0, 1] by round.
    rounds
        Over how many of the last rounds it must not rise, at least 1; from round ``2 * rounds`` on, over the
        last half of all rounds.
    min_delta
        What counts as a rise is more than this, in [0, 1).

    Returns
    -------
    int or None
        The smallest r with ``best(r) - best(r - w) <= min_delta``, where ``w = max(rounds, r // 2)`` and
        best(r) is the highest mean of five successive evaluations up to round r; best(r - w) must exist.

    Examples
    --------
    >>> plateau([0.1, 0.5] + [0.7] * 12, rounds=2)  # best(6) is 0.7, and from round 11 to 6 is half of 11
    11
    """
    best, highest = [], -math.inf
    for end in range(AVERAGED, len(curve) + 1):
        highest = max(highest, math.fsum(curve[end - AVERAGED : end]) / AVERAGED)
        best.append(highest)
    first = AVERAGED - 1  # the round of best[0]
    for r in range(first, len(curve)):
        before = r - max(rounds, r // 2)
        if before >= first and best[r - first] - best[before - first] <= min_delta + TOLERANCE:
            return r
    return None


_RELATIVE = re.compile(r"(?P<share>[0-9.]+)%-of-(?P<what>converged|gain)")


def resolve_target(target: float | str, converged: float, majority: float = 0.0) -> float:
    """Turn a target into an accuracy.

    Parameters
    ----------
    target
        An accuracy in (0, 1]; a share of the accuracy that the baseline converges to, such as
        ``"95%-of-converged"``; or of what that gains over the majority class, such as ``"95%-of-gain"``.
    converged
        The converged accuracy of the same seed's baseline.
    majority
        What an answer that is always the same scores: the share of the largest class (in a regression, 0).

    Returns
    -------
    float
        The accuracy to reach. A share of what is not above 0 (an R² or a gain can be) says nothing, and
        nobody reaches it: 2.

    Examples
    --------
    >>> resolve_target("50%-of-converged", 0.9)
    0.45
    >>> resolve_target("50%-of-gain", 0.9, majority=0.5)
    0.7
    """
    found = _RELATIVE.fullmatch(target) if isinstance(target, str) else None
    if found is None:
        return float(target)
    floor = majority if found["what"] == "gain" else 0.0
    whole = converged - floor
    return UNREACHABLE if whole <= 0 else floor + float(found["share"]) / 100 * whole
