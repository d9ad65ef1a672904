r"""The head ``lda``: linear discriminant analysis, from class means and one shared covariance.

Features of class c are taken for Gaussian around :math:`\mu_c` with the covariance S of all classes, and
:math:`\pi_c = n_c / N` of the examples are of it. Then the logits

.. math::

    W_c = (\mu_c - \bar f)^\top S^{-1}, \quad
    b_c = -W_c \bar f - \tfrac{1}{2} W_c (\mu_c - \bar f) + \log \pi_c

are the logarithms of the probabilities of the classes, up to a number that all classes share. S is shrunk
towards a multiple of the identity, so that it has an inverse where features are many:

.. math:: S = (1 - a)\,\hat S + a\,\frac{\operatorname{tr} \hat S}{D} I

with :math:`\hat S` the pooled covariance ``within`` classes (over N minus the number of classes, as GH-OFL
has it), or the ``total`` covariance of all features (over N - 1, as FedCGS has it). The shrinkage a is a
number, or ``oas``: the oracle approximating shrinkage, which needs the traces of :math:`\hat S` and
:math:`\hat S^2` only, so it follows from the sums. Like ``lda`` itself it takes features for Gaussian.

.. math::

    a = \min\left(1, \frac{(1 - 2/D) \operatorname{tr} \hat S^2 + \operatorname{tr}^2 \hat S}
    {(n + 1 - 2/D)(\operatorname{tr} \hat S^2 - \operatorname{tr}^2 \hat S / D)}\right)

with n the degrees of freedom of :math:`\hat S`.

A class that nobody has gets the mean logit of the others less :math:`\log(N + 1)`: it is never the answer.
Features without any extent have the identity as covariance, and no eigenvalue of S is below what rounding for
``upload`` leaves in doubt. GH-OFL has a = 0.05 and adds 1e-6 to the diagonal, FedCGS has a = 0; ours is above
0, with nothing added.

Shape suffixes: N examples, D features, C classes.

References
----------
Turazza et al. 2026, "The Gaussian-Head OFL Family: One-Shot Federated Learning from Client Global
Statistics", arXiv 2602.01186: its closed-form head LDA. Guan et al. 2025, "Capture Global Feature Statistics
for One-Shot Federated Learning" (FedCGS), arXiv 2503.06962. Chen et al. 2010, "Shrinkage Algorithms for MMSE
Covariance Estimation", arXiv 0907.4698, equation 23.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from kdfed.closed_form.head import ClosedFormHead
from kdfed.closed_form.linear import Linear
from kdfed.closed_form.sums import Sums

if TYPE_CHECKING:
    from kdfed.data import Examples


class Lda(ClosedFormHead):
    """Class means and a shared covariance (GH-OFL, Turazza et al. 2026; FedCGS, Guan et al. 2025)."""

    head: Literal["lda"] = "lda"
    """The closed-form head."""
    covariance: Literal["within", "total"] = "within"
    """The covariance of features around the mean of their class, or around the mean of all."""
    shrinkage: Annotated[float, Field(ge=1e-9, le=1)] | Literal["oas"] = "oas"
    """Share of the identity in the covariance, above 0 and at most 1; 1 is the nearest class mean. ``oas``:
    chosen from the sums."""

    def fit(self, sums: Sums, validation: Examples | None) -> Linear:
        """Return the logits; see the module."""
        if self.covariance == "within":
            free, scatter_DD = sums.examples - int(sums.present_C.sum()), sums.within_gram()
        else:
            free, scatter_DD = sums.examples - 1, sums.centred_gram()
        values_D, vectors_DD = torch.linalg.eigh(scatter_DD / max(free, 1))
        values_D = values_D.clamp_min(0)
        share = oracle_shrinkage(values_D, free) if self.shrinkage == "oas" else self.shrinkage
        mean = float(values_D.mean())
        shrunk_D = (1 - share) * values_D + share * mean if mean > 0 else torch.ones_like(values_D)
        shrunk_D = shrunk_D.clamp_min(sums.noise(self.upload) / max(free, 1))
        from_mean_CD = sums.means_CD - sums.mean_D
        weight_CD = (from_mean_CD @ vectors_DD / shrunk_D) @ vectors_DD.T
        priors_C = (sums.counts_C.double() / sums.examples).clamp_min(1e-300)
        bias_C = priors_C.log() - weight_CD @ sums.mean_D - (weight_CD * from_mean_CD).sum(1) / 2
        fitted = float(((1 - share) * values_D / shrunk_D).sum()) if mean > 0 else 0.0
        linear = Linear(weight_CD, bias_C, share, fitted, f"shrinkage: {self.shrinkage}")
        return without_absent(linear, sums)


def oracle_shrinkage(values_D: torch.Tensor, free: int) -> float:
    """Return the shrinkage, from 0 to 1, that suits the eigenvalues of a covariance: ``oas`` of the module.

    Parameters
    ----------
    values_D
        Eigenvalues, 0 or larger, float64 [D].
    free
        Degrees of freedom, n.
    """
    dims = len(values_D)
    squares, square = float(values_D.square().sum()), float(values_D.sum()) ** 2
    excess = (free + 1 - 2 / dims) * (squares - square / dims)
    if free < 1 or excess <= 0:
        return 1.0
    return min(1.0, max(1e-9, ((1 - 2 / dims) * squares + square) / excess))


def without_absent(linear: Linear, sums: Sums) -> Linear:
    """Return a head that never answers a class which nobody has.

    Such a class gets the mean of the other logits less log(N + 1): never the largest, and finite.
    """
    present_C, weight_CD, bias_C = sums.present_C, linear.weight_CD, linear.bias_C
    least = bias_C[present_C].mean() - torch.log1p(torch.tensor(float(sums.examples), dtype=torch.float64))
    weight_CD = torch.where(present_C.unsqueeze(1), weight_CD, weight_CD[present_C].mean(0))
    return replace(linear, weight_CD=weight_CD, bias_C=torch.where(present_C, bias_C, least))
