"""The learning rate over a distillation."""

from __future__ import annotations

import math


def cosine(done: float) -> float:
    r"""Return the factor of the learning rate after the share x of steps.

    .. math:: \frac{1}{2} (1 + \cos \pi x)

    References
    ----------
    Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983, equation 5 without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * done))
