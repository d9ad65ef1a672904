r"""The scale of logits: the factor s that minimises the cross entropy of :math:`s z`, a convex function of s.

It is 1 / T of temperature scaling and changes no answer. One more example's worth of doubt is added, a
uniform label of weight 1 / (N + 1), so that the factor stays finite where every example is right.

Shape suffixes: N examples, C classes.

References
----------
Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
Platt 1999, "Probabilistic Outputs for Support Vector Machines": targets that are not quite 0 and 1.
"""

from __future__ import annotations

import math

import torch

from kdfed.errors import KdfedError

LEAST, MOST = 2.0**-10, 2.0**30
"""The range of the largest logit that the factor makes, around the mean of its example."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def best_scale(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Return the factor, by golden section over its logarithm; 1 for logits that are all flat.

    Parameters
    ----------
    logits_NC
        Float64, on the CPU, [N, C].
    labels_N
        Classes, int64 [N].

    Raises
    ------
    KdfedError
        If there is no example, or logits are not finite.
    """
    if len(labels_N) == 0 or not bool(torch.isfinite(logits_NC).all()):
        raise KdfedError(f"expected finite logits of at least one example, got {len(labels_N)} examples")
    doubt = 1 / (len(labels_N) + 1)
    spread_NC = logits_NC - logits_NC.mean(1, keepdim=True)
    size = float(spread_NC.abs().max())
    if size == 0:
        return 1.0
    kept = float(spread_NC.gather(1, labels_N.unsqueeze(1)).mean()) * (1 - doubt)

    def entropy(logarithm: float) -> float:
        factor = math.exp(logarithm) / size
        return float(torch.logsumexp(factor * spread_NC, dim=1).mean()) - factor * kept

    low, high = math.log(LEAST), math.log(MOST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = entropy(left), entropy(right)
    while high - low > 1e-6:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = entropy(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = entropy(right)
    return math.exp((low + high) / 2) / size
