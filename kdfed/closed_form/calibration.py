r"""The scale of a head's logits, with which its softmax is as sure as it is right: :mod:`kdfed.logit_scale`.

A least-squares head answers with numbers from 0 to 1, whose softmax is nearly flat: training that starts
there first blows the weights up. A factor changes no answer and removes this.

By labels
    on a few labelled examples.
By sums
    on logits that are drawn from what the sums say they are: Gaussian around the mean of each class, with the
    shared covariance within classes. That is the assumption of ``lda``, of C logits in place of D features.
    No label of the server is used. The covariance is that of the very examples which the head was fitted on;
    as in generalised cross-validation, it is divided by :math:`(1 - h / N)^2`, with the number h of features
    that the head has fitted, in effect. The class means are theirs too, so with few examples the factor is
    too large still.

Shape suffixes: N examples, D features, C classes.

References
----------
Fanì et al. 2024, arXiv 2406.01116: a calibrated temperature before a ridge head is fine-tuned.
"""

from __future__ import annotations

import torch

from kdfed.closed_form.linear import Linear
from kdfed.closed_form.sums import Sums
from kdfed.logit_scale import best_scale
from kdfed.seeding import torch_generator

_DRAWN = 8192  # logits that are drawn, at most


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
    return best_scale(linear(features_ND), labels_N.cpu())


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
    return best_scale(linear(sums.means_CD)[labels_N] + noise_NC @ root_CC.T, labels_N)
