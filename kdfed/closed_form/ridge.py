r"""The head ``ridge``: least squares to one-hot labels (or numbers) with a penalty, solved from sums.

.. math::

    \min_{W, b} \sum_i \lVert W f_i + b - y_i \rVert^2 + \lambda \lVert W \rVert^2
    \quad\Rightarrow\quad W = B (G + \lambda I)^{-1}, \; b = \bar y - W \bar f

with the Gram matrix of centred features :math:`G = \sum_i (f_i - \bar f)(f_i - \bar f)^\top` and
:math:`B = \sum_i (y_i - \bar y)(f_i - \bar f)^\top`. Both follow from the sums that participants send, so the head
is that of all examples in one place, whatever the partition.

The penalty :math:`\lambda` is a number, or chosen among powers :math:`10^{k/4}`, from far below the eigenvalues of G
to above the largest (and never below what rounding for ``upload`` leaves of them):

``gcv``
    by generalised cross-validation, from the sums alone:

    .. math::

        \mathrm{GCV}(\lambda) = \frac{\frac{1}{N} \sum_i \lVert W f_i + b - y_i \rVert^2}{(1 - h / N)^2},
        \quad h = 1 + \sum_j \frac{e_j}{e_j + \lambda}

    with the eigenvalues :math:`e_j` of G: an estimate of the error on an example that was left out.
``validation``
    by the score on the server's labelled examples; of equal ones the smaller squared error decides.

Deviations: AFL has no bias and inverts on the participants, which comes to the same sums; Fed3R puts the penalty on
the bias too and scales each class's weights to length 1. Neither chooses its penalty from sums.

Shape suffixes: N examples, D features, C outputs.

References
----------
He et al. 2025, "AFL: A Single-Round Analytic Approach for Federated Learning with Pre-trained Models", arXiv
2405.16240.
Fanì et al. 2024, "Accelerating Heterogeneous Federated Learning with Closed-form Classifiers" (Fed3R), arXiv
2406.01116.
Golub, Heath and Wahba 1979, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter",
Technometrics 21 (2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional

from kdfed.closed_form.head import ClosedFormHead
from kdfed.closed_form.linear import Linear
from kdfed.closed_form.sums import EPSILON, Sums
from kdfed.task import CLASSIFICATION, REGRESSION

if TYPE_CHECKING:
    from kdfed.data import Examples


class Ridge(ClosedFormHead):
    """Least squares to one-hot labels with a penalty (AFL, He et al. 2025; Fed3R, Fanì et al. 2024)."""

    head: Literal["ridge"] = "ridge"
    """The closed-form head."""
    penalty: Annotated[float, Field(gt=0, le=1e15)] | Literal["gcv", "validation"] = "gcv"
    """Penalty on the squared weights (lambda), above 0, in units of summed squared features; or how it is chosen:
    by ``gcv``, generalised cross-validation from the sums alone, or by the labels of the ``validation`` split."""

    needs_classes: ClassVar[str] = ""

    def server_labels(self) -> frozenset[str]:
        """Add those by which the penalty is chosen."""
        return super().server_labels() | frozenset(["validation"] * (self.penalty == "validation"))

    def fit(self, sums: Sums, validation: Examples | None) -> Linear:
        """Return the solution; see the module."""
        system = System.of(sums)
        if isinstance(self.penalty, float):
            penalty = self.penalty
        elif self.penalty == "gcv":
            penalty = system.least_left_out(system.penalties(sums.noise(self.upload)))
        else:
            assert validation is not None
            penalty = max(
                system.penalties(sums.noise(self.upload)),
                key=lambda one: (*_judged(system.solution(one), validation, sums), one),
            )
        return system.solution(penalty)


@dataclass(frozen=True, eq=False)
class System:
    """The normal equations, with the Gram matrix in terms of its eigenvectors.

    Parameters
    ----------
    examples
        N.
    mean_D, answer_C
        Means of the features and of what is wanted.
    values_D, vectors_DD
        Eigenvalues of G, rising, and its eigenvectors, in columns.
    wanted_CD
        B, in terms of the eigenvectors.
    squares
        Sum of the squares of what is wanted, around its mean.
    """

    examples: int
    mean_D: torch.Tensor
    answer_C: torch.Tensor
    values_D: torch.Tensor
    vectors_DD: torch.Tensor
    wanted_CD: torch.Tensor
    squares: float

    @classmethod
    def of(cls, sums: Sums) -> System:
        """Return the equations that sums make."""
        count, mean_D = sums.examples, sums.mean_D
        if sums.labels is None:
            totals_C = sums.counts_C.double()
            products_CD, squares = sums.sums_RD, float(count - totals_C.square().sum() / count)
        else:
            totals_C, products_CD = sums.labels[:1], sums.sums_RD[1:]
            squares = float(sums.labels[1] - totals_C.square().sum() / count)
        values_D, vectors_DD = torch.linalg.eigh(sums.centred_gram())
        # Where G has no extent, up to rounding, there is nothing to learn from: B has none there either.
        flat_D = values_D <= len(values_D) * EPSILON["float64"] * values_D[-1:].clamp_min(0)
        wanted_CD = (products_CD - torch.outer(totals_C, mean_D)) @ vectors_DD
        return cls(
            count,
            mean_D,
            totals_C / count,
            values_D.masked_fill(flat_D, 0.0),
            vectors_DD,
            wanted_CD.masked_fill(flat_D, 0.0),
            squares,
        )

    def solution(self, penalty: float) -> Linear:
        """Return the head with a penalty above 0."""
        weight_CD = (self.wanted_CD / (self.values_D + penalty)) @ self.vectors_DD.T
        bias_C = self.answer_C - weight_CD @ self.mean_D
        return Linear(weight_CD, bias_C, penalty, self.fitted(penalty))

    def fitted(self, penalty: float) -> float:
        r"""Return :math:`\sum_j e_j / (e_j + \lambda)`: how many features are fitted, in effect."""
        return float((self.values_D / (self.values_D + penalty)).sum())

    def left_out(self, penalty: float) -> float:
        """Return the generalised cross-validation error, a mean square; infinite where nothing is left over."""
        values_D, missed_D = self._seen(self.values_D), penalty / (self._seen(self.values_D) + penalty)
        explained_D = self._seen(self.wanted_CD.square().sum(0)) / values_D
        outside = self.squares - float(explained_D.sum())  # what no weights explain: 0, up to rounding, or more
        outside = outside if outside > 1e-12 * self.squares else 0.0
        free = self.examples - 1 - len(values_D) + float(missed_D.sum())
        if free <= 0:
            return math.inf
        return (outside + float((explained_D * missed_D.square()).sum())) * self.examples / free**2

    def least_left_out(self, penalties: list[float]) -> float:
        """Return the penalty of the smallest such error; of those that equal it up to rounding the largest."""
        errors = [self.left_out(one) for one in penalties]
        return max(one for one, error in zip(penalties, errors, strict=True) if error <= min(errors) * (1 + 1e-6))

    def _seen(self, any_D: torch.Tensor) -> torch.Tensor:
        """Return what belongs to the eigenvalues above 0."""
        return any_D[self.values_D > 0]

    def penalties(self, noise: float) -> list[float]:
        """Return the penalties to choose from, at least one; none below what is noise."""
        largest, mean = float(self.values_D[-1]), float(self.values_D.mean())
        if largest == 0:
            return [1.0]
        low, high = max(1e-8 * mean, noise), max(100 * largest, noise)
        return [10 ** (k / 4) for k in range(math.ceil(4 * math.log10(low)), math.ceil(4 * math.log10(high)) + 1)]


def _judged(linear: Linear, validation: Examples, sums: Sums) -> tuple[float, float]:
    """Return how good a head is on labelled examples: its score, and minus its squared error."""
    outputs_NC, labels_N = linear(validation.inputs), validation.labels.cpu()
    if sums.labels is None:
        wanted_NC = functional.one_hot(labels_N, outputs_NC.shape[1])
        return CLASSIFICATION.score(outputs_NC, labels_N), -float((outputs_NC - wanted_NC).square().mean())
    return REGRESSION.score(outputs_NC, labels_N), 0.0
