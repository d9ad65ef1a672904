r"""The head ``ridge``: least squares to one-hot labels (or numbers) with a penalty, solved from sums.

.. math::

    \min_{W, b} \sum_i \lVert W f_i + b - y_i \rVert^2 + \lambda \lVert W \rVert^2

The sums that participants send are all that :mod:`kdfed.least_squares` asks for, so the head is that of all
examples in one place, whatever the partition.

The penalty :math:`\lambda` is a number, or chosen among powers :math:`10^{k/4}`, from far below the
eigenvalues of the Gram matrix to above the largest (and never below what rounding for ``upload`` leaves of
them):

``gcv``
    by generalised cross-validation, an estimate of the squared error on an example that was left out, from
    the sums alone. With more features than examples too: as :math:`\lambda` goes to 0 both error and freedom
    vanish, and their ratio keeps a finite limit, so that the smallest penalty is taken only where it is good.
``validation``
    by the score on the server's labelled examples; of equal ones the smaller squared error decides.

Deviations: AFL has no bias and inverts on the participants, which comes to the same sums; Fed3R puts the
penalty on the bias too and scales each class's weights to length 1. Neither chooses its penalty from sums.

Shape suffixes: N examples, D features, C outputs.

References
----------
He et al. 2025, "AFL: A Single-Round Analytic Approach for Federated Learning with Pre-trained Models", arXiv
2405.16240.
Fanì et al. 2024, "Accelerating Heterogeneous Federated Learning with Closed-form Classifiers" (Fed3R), arXiv
2406.01116.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional

from kdfed.closed_form.head import ClosedFormHead
from kdfed.closed_form.linear import Linear
from kdfed.closed_form.sums import Sums
from kdfed.least_squares import LeastSquares
from kdfed.task import CLASSIFICATION, REGRESSION

if TYPE_CHECKING:
    from kdfed.data import Examples


class Ridge(ClosedFormHead):
    """Least squares to one-hot labels with a penalty (AFL, He et al. 2025; Fed3R, Fanì et al. 2024)."""

    head: Literal["ridge"] = "ridge"
    """The closed-form head."""
    penalty: Annotated[float, Field(gt=0, le=1e15)] | Literal["gcv", "validation"] = "gcv"
    """Penalty on the squared weights (lambda), above 0, in units of summed squared features; or how it is
    chosen: by ``gcv``, generalised cross-validation from the sums alone, or by the labels of the
    ``validation`` split."""

    needs_classes: ClassVar[str] = ""

    def server_labels(self) -> frozenset[str]:
        """Add those by which the penalty is chosen."""
        return super().server_labels() | frozenset(["validation"] * (self.penalty == "validation"))

    def fit(self, sums: Sums, validation: Examples | None) -> Linear:
        """Return the solution; see the module."""
        squares = equations(sums)
        noise = sums.noise(self.upload)
        if isinstance(self.penalty, float):
            penalty = self.penalty
        elif self.penalty == "gcv":
            penalty = squares.least_left_out(noise)
        else:
            assert validation is not None
            penalty = max(
                squares.penalties(noise),
                key=lambda one: (*_judged(Linear(*squares.solution(one)), validation, sums), one),
            )
        chosen_by = f"penalty: {self.penalty}"
        solution, fitted = squares.solution(penalty), squares.fitted(penalty)
        return Linear(*solution, penalty, fitted, chosen_by, explained=squares.explained(penalty))


def equations(sums: Sums) -> LeastSquares:
    """Return the normal equations that sums make."""
    count, mean_D = sums.examples, sums.mean_D
    if sums.labels is None:
        totals_C = sums.counts_C.double()
        products_CD, squares = sums.sums_RD, float(count - totals_C.square().sum() / count)
    else:
        totals_C, products_CD = sums.labels[:1], sums.sums_RD[1:]
        squares = float(sums.labels[1] - totals_C.square().sum() / count)
    products_CD = products_CD - torch.outer(totals_C, mean_D)
    return LeastSquares.from_sums(count, mean_D, totals_C / count, sums.centred_gram(), products_CD, squares)


def _judged(linear: Linear, validation: Examples, sums: Sums) -> tuple[float, float]:
    """Return how good a head is on labelled examples: its score, and minus its squared error."""
    outputs_NC, labels_N = linear(validation.inputs), validation.labels.cpu()
    if sums.labels is None:
        wanted_NC = functional.one_hot(labels_N, outputs_NC.shape[1])
        return CLASSIFICATION.score(outputs_NC, labels_N), -float((outputs_NC - wanted_NC).square().mean())
    return REGRESSION.score(outputs_NC, labels_N), 0.0
