"""Does a start with a head in closed form pay? What can be said before its exchange, and after it.

Both rules are of one number each, chosen on tuning seeds (docs/recipe.md) and judged by their regret on other
cells (``kdfed report`` of a matrix): how many exchanges more than the better of both starts it takes to do as
they say.

before the exchange
    How many features the head reads. It costs nothing to know: the model says so. A head on few features of
    an untrained network is soon overtaken by rounds.
after the exchange
    Which share of the labels' variance the solved head explains, of examples that were left out: the sums say
    so, no label of the server's is needed. The exchange is paid for by then; what is decided is whether to go
    on from the head or from the initial weights.
"""

from __future__ import annotations

from typing import NamedTuple

LEAST_FEATURES = 64
"""Features of an untrained network from which on a start with a solved head is expected to save exchanges."""

LEAST_EXPLAINED = 0.1
"""Share of the labels' variance from which on it is better to go on from a solved head than without it."""


class Advice(NamedTuple):
    """What is expected of a start.

    Parameters
    ----------
    pays
        Whether it is worth its exchange; once that is paid for, whether to go on from it.
    why
        The reason: one clause.
    """

    pays: bool
    why: str


def before_exchange(features: int, *, pretrained: bool) -> Advice:
    """Say whether a start with a solved head is expected to pay, before anything is sent.

    Parameters
    ----------
    features
        That the head reads.
    pretrained
        Whether they are those of a backbone that was trained before.
    """
    if pretrained:
        return Advice(True, "features of a pre-trained backbone were enough on all cells that were measured")
    if features >= LEAST_FEATURES:
        return Advice(True, f"{features} features of an untrained network, at least {LEAST_FEATURES}")
    return Advice(False, f"{features} features of an untrained network, fewer than {LEAST_FEATURES}")


def after_exchange(explained: float) -> Advice:
    """Say whether to go on from a solved head, once its exchange is paid for.

    Parameters
    ----------
    explained
        Share of the labels' variance, see :attr:`kdfed.closed_form.Linear.explained`.
    """
    share = f"the head explains {explained:.0%} of the labels' variance"
    if explained >= LEAST_EXPLAINED:
        return Advice(True, f"{share}, at least {LEAST_EXPLAINED:.0%}")
    return Advice(False, f"{share}, less than {LEAST_EXPLAINED:.0%}")
