r"""The gradient along which a participant went in a round, of which control variates are made.

A participant that made K steps of SGD with rate :math:`\eta` from x to y went along

.. math:: g = \frac{x - y}{\eta\,k(K)}, \qquad k(K) = \sum_{j=1}^{K} \frac{1 - m^j}{1 - m}

which is a weighted mean of its K gradients: with momentum m, gradient number K - j + 1 enters the way
:math:`(1 - m^j) / (1 - m)` times, and without it once, so that k(K) = K. Where :math:`c - c_i` was added to
each gradient, the server's control variate less its own, its next one is :math:`c_i - c + g`.

References
----------
Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv 1910.06378,
algorithm 1, option II of line 12, which has no momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from kdfed.models import State


def weight_of_steps(steps: int, momentum: float) -> float:
    """Return k(K).

    Parameters
    ----------
    steps
        K, 1 or larger.
    momentum
        m in [0, 1).
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def mean_gradient(
    start: Mapping[str, torch.Tensor],
    trained: Mapping[str, torch.Tensor],
    keys: Iterable[str],
    lr: float,
    momentum: float,
    steps: int,
) -> State:
    r"""Return g.

    Parameters
    ----------
    start, trained
        x and y, on the CPU.
    keys
        Which of them are weights: buffers have no gradient.
    lr, momentum, steps
        Of the training; steps 1 or more.
    """
    way = lr * weight_of_steps(steps, momentum)
    return {key: (start[key] - trained[key]) / way for key in keys}
