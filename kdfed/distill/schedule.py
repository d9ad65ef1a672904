"""The learning rate over a distillation: factors that are multiplied."""

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


def warm_up(done: float, step: float, share: float) -> float:
    r"""Return the factor of the learning rate while it still rises.

    .. math:: \min(1, (x + s) / w)

    Parameters
    ----------
    done
        x, the share of the steps that are done.
    step
        s, the share that one step is.
    share
        w, the share of the steps over which it rises; 0 turns it off.

    Examples
    --------
    >>> [round(warm_up(step / 10, 1 / 10, share=0.4), 3) for step in range(5)]  # 10 steps
    [0.25, 0.5, 0.75, 1.0, 1.0]

    References
    ----------
    Goyal et al. 2017, "Accurate, Large Minibatch SGD", arXiv 1706.02677, section 2.2.
    """
    return min(1.0, (done + step) / share) if share > 0 else 1.0
