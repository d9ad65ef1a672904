r"""The scale of logits: the factor s with which a head's softmax is as sure as it is right.

A least-squares head answers with numbers from 0 to 1, whose softmax is nearly flat: training that starts there
first blows the weights up. A factor changes no answer and removes this. It is the s that minimises the cross
entropy of :math:`s z`, a convex function of one number.

By labels
    on a few labelled examples. One more example's worth of doubt is added, a uniform label of weight
    1 / (N + 1), so that the factor stays finite where all of them are right.
By sums
    on logits that are drawn from what the sums say they are: Gaussian around the mean of each class, with the
    shared covariance within classes. That is the assumption of ``lda``, of C logits in place of D features. No
    label of the server is used. The covariance is that of the very examples which the head was fitted on; as in
    generalised cross-validation, it is divided by :math:`(1 - h / N)^2`, with the number h of features that the
    head has fitted, in effect.

Shape suffixes: N examples, D features, C classes.

References
----------
Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599: one temperature, 1 / s.
Platt 1999, "Probabilistic Outputs for Support Vector Machines": targets that are not quite 0 and 1.
Fanì et al. 2024, arXiv 2406.01116: a calibrated temperature before a ridge head is fine-tuned.
"""

from __future__ import annotations

import math

import torch

from kdfed.closed_form.linear import Linear
from kdfed.closed_form.sums import Sums
from kdfed.errors import KdfedError
from kdfed.seeding import torch_generator

LEAST, MOST = 2.0**-10, 2.0**30
"""The range of the largest logit that a factor makes, around the mean of its example."""

_DRAWN = 8192  # logits that are drawn, at most
_GOLDEN = (math.sqrt(5) - 1) / 2


def scale_by_labels(linear: Linear, features_ND: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Return the factor of the logits that suits labelled examples best.

    Parameters
    ----------
    linear
        The head.
    features_ND
        Float, on any device, [N, D].
    labels_N
        Classes, int64 [N].

    Raises
    ------
    KdfedError
        If there is no example, or the logits are not finite.
    """
    return _best_scale(linear(features_ND), labels_N.cpu())


def scale_by_sums(linear: Linear, sums: Sums, seed: int) -> float:
    """Return the factor of the logits that suits what the sums say of them best.

    Parameters
    ----------
    linear
        The head, on the features that the sums are over.
    sums
        With a Gram matrix; at least one example.
    seed
        Of what is drawn.
    """
    weight_CD = linear.weight_CD.double()
    count = sums.examples
    left = max(1 / count, 1 - linear.fitted / count)
    free = max(1, count - int(sums.present_C.sum())) * left**2
    covariance_CC = weight_CD @ sums.within_gram() @ weight_CD.T / free
    values_C, vectors_CC = torch.linalg.eigh((covariance_CC + covariance_CC.T) / 2)
    root_CC = vectors_CC * values_C.clamp_min(0).sqrt()
    shares_C = sums.counts_C.double() / count
    drawn_C = (shares_C * _DRAWN).ceil().long()
    labels_N = torch.arange(len(drawn_C)).repeat_interleave(drawn_C)
    noise_NC = torch.randn(
        len(labels_N), len(drawn_C), dtype=torch.float64, generator=torch_generator(seed, "calibration")
    )
    return _best_scale(linear(sums.means_CD)[labels_N] + noise_NC @ root_CC.T, labels_N)


def _best_scale(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Minimise the cross entropy by golden section over the logarithm of the factor."""
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
