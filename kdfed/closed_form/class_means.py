r"""The head ``class-means``: the class whose mean is nearest, from class sums and counts alone.

``euclidean``
    the smallest distance:
    :math:`W_c = (\mu_c - \bar f)^\top, \; b_c = -W_c \bar f - \frac{1}{2} \lVert \mu_c - \bar f \rVert^2`,
    which is :math:`-\frac{1}{2} \lVert f - \mu_c \rVert^2` up to a number that all classes share.
``cosine``
    the smallest angle, as FedNCM has it: :math:`W_c = \mu_c^\top / \lVert \mu_c \rVert, \; b_c = 0`.

It is the cheapest head: no Gram matrix. The size of its logits means nothing; only labels can calibrate it. A
class that nobody has gets the mean logit of the others less :math:`\log(N + 1)`, so it is never the answer.

FedCGS, whose class means are often named with it, sends a Gram matrix too: that is ``lda`` with ``covariance:
total``.

Shape suffixes: N examples, D features, C classes.

References
----------
Legate et al. 2023, "Guiding The Last Layer in Federated Learning with Pre-Trained Models" (FedNCM), arXiv
2306.03937.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from kdfed.closed_form.head import ClosedFormHead
from kdfed.closed_form.lda import without_absent
from kdfed.closed_form.linear import Linear
from kdfed.closed_form.sums import Sums

if TYPE_CHECKING:
    from kdfed.data import Examples


class ClassMeans(ClosedFormHead):
    """The nearest class mean (FedNCM, Legate et al. 2023): the cheapest."""

    head: Literal["class-means"] = "class-means"
    """The closed-form head."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """What is nearest: the smallest distance, or the smallest angle."""
    calibrate: Literal["no", "validation"] = "no"
    """Scale the logits, so that their softmax is as sure as it is right, by the labels of the validation
    split. The answers stay the same; it matters where training goes on."""

    needs_gram: ClassVar[bool] = False

    def fit(self, sums: Sums, validation: Examples | None) -> Linear:
        """Return the logits; see the module."""
        if self.distance == "cosine":
            lengths_C = sums.means_CD.norm(dim=1, keepdim=True)
            weight_CD = sums.means_CD / torch.where(lengths_C > 0, lengths_C, 1.0)
            return without_absent(Linear(weight_CD, torch.zeros(len(weight_CD), dtype=torch.float64)), sums)
        weight_CD = sums.means_CD - sums.mean_D
        bias_C = -weight_CD @ sums.mean_D - weight_CD.square().sum(1) / 2
        return without_absent(Linear(weight_CD, bias_C), sums)
