r"""Least squares with a penalty on the weights and none on the bias, for many penalties at once.

.. math::

    \min_{W, b} \sum_i \lVert W f_i + b - y_i \rVert^2 + \lambda \lVert W \rVert^2
    \quad\Rightarrow\quad W = B (G + \lambda I)^{-1}, \; b = \bar y - W \bar f

with :math:`G = \sum_i (f_i - \bar f)(f_i - \bar f)^\top` and :math:`B = \sum_i (y_i - \bar y)(f_i - \bar
f)^\top`. Everything follows from the eigenvectors of G, those with an eigenvalue :math:`e_j` above 0.

The penalty can be chosen by generalised cross-validation, an estimate of the error on an example left out:

.. math::

    \mathrm{GCV}(\lambda) = \frac{\frac{1}{N} \sum_i \lVert W f_i + b - y_i \rVert^2}{(1 - h / N)^2},
    \quad h = 1 + \sum_j \frac{e_j}{e_j + \lambda}

Shape suffixes: N examples, D features, C outputs, E eigenvectors.

References
----------
Golub, Heath and Wahba 1979, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter",
Technometrics 21 (2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_ROUNDING = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """The normal equations, in terms of eigenvectors; all in float64.

    Parameters
    ----------
    examples
        N, at least 1.
    mean_D, answer_C
        Means of the features and of what is wanted.
    values_E, vectors_DE
        Eigenvalues of G above 0, and their eigenvectors, in columns.
    wanted_CE
        B, in terms of the eigenvectors.
    squares
        Sum of the squares of what is wanted, around its mean.
    """

    examples: int
    mean_D: torch.Tensor
    answer_C: torch.Tensor
    values_E: torch.Tensor
    vectors_DE: torch.Tensor
    wanted_CE: torch.Tensor
    squares: float

    @classmethod
    def from_sums(
        cls,
        examples: int,
        mean_D: torch.Tensor,
        answer_C: torch.Tensor,
        gram_DD: torch.Tensor,
        products_CD: torch.Tensor,
        squares: float,
    ) -> LeastSquares:
        """Return the equations that sums over examples make.

        Parameters
        ----------
        examples, mean_D, answer_C, squares
            As for the class.
        gram_DD, products_CD
            G and B, around the means.
        """
        values_E, vectors_DE = torch.linalg.eigh(gram_DD)
        # Where G has no extent, up to rounding, there is nothing to learn from: B has none there either.
        seen_E = values_E > len(values_E) * _ROUNDING * values_E[-1]
        vectors_DE = vectors_DE[:, seen_E]
        return cls(
            examples, mean_D, answer_C, values_E[seen_E], vectors_DE, products_CD @ vectors_DE, squares
        )

    @classmethod
    def from_examples(cls, features_ND: torch.Tensor, wanted_NC: torch.Tensor) -> LeastSquares:
        """Return the equations of examples, float64; quick where features are many and examples are few."""
        mean_D, answer_C = features_ND.mean(0), wanted_NC.mean(0)
        left_NE, sizes_E, right_ED = torch.linalg.svd(features_ND - mean_D, full_matrices=False)
        away_NC = wanted_NC - answer_C
        seen_E = sizes_E > max(features_ND.shape) * _ROUNDING * sizes_E[:1]
        left_NE, sizes_E, right_ED = left_NE[:, seen_E], sizes_E[seen_E], right_ED[seen_E]
        wanted_CE = away_NC.T @ left_NE * sizes_E
        squares = float(away_NC.square().sum())
        return cls(len(features_ND), mean_D, answer_C, sizes_E.square(), right_ED.T, wanted_CE, squares)

    def solution(self, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return W, float64 [C, D], and b, float64 [C], for a penalty above 0."""
        weight_CD = (self.wanted_CE / (self.values_E + penalty)) @ self.vectors_DE.T
        return weight_CD, self.answer_C - weight_CD @ self.mean_D

    def fitted(self, penalty: float) -> float:
        r"""Return :math:`h - 1`: how many features are fitted, in effect."""
        return float((self.values_E / (self.values_E + penalty)).sum())

    def left_out(self, penalty: float) -> float:
        """Return the generalised cross-validation error, a mean square; infinite where nothing is left."""
        missed_E = penalty / (self.values_E + penalty)
        explained_E = self.wanted_CE.square().sum(0) / self.values_E
        outside = self.squares - float(
            explained_E.sum()
        )  # what no weights explain: 0, up to rounding, or more
        outside = outside if outside > 1e-12 * self.squares else 0.0
        free = self.examples - 1 - len(self.values_E) + float(missed_E.sum())
        if free <= 0:
            return math.inf
        return (outside + float((explained_E * missed_E.square()).sum())) * self.examples / free**2

    def explained(self, penalty: float) -> float:
        """Return which share of the answers' variance is explained, of examples that were left out.

        1 minus :meth:`left_out` over the mean square around the answers' mean: at most 1, and below 0 where
        the mean alone would be the better guess; minus infinity where nothing is left.
        """
        return 1.0 - self.left_out(penalty) * self.examples / self.squares if self.squares > 0 else 0.0

    def penalties(self, noise: float = 0.0) -> list[float]:
        """Return powers 10^(k/4) to choose from, rising, at least one: from far below the eigenvalues on.

        Parameters
        ----------
        noise
            The size of eigenvalues that are in doubt: no penalty is below it.
        """
        if len(self.values_E) == 0:
            return [1.0]
        low = max(1e-8 * float(self.values_E.mean()), noise)
        high = max(100 * float(self.values_E.max()), low)
        return [
            10 ** (k / 4) for k in range(math.ceil(4 * math.log10(low)), math.ceil(4 * math.log10(high)) + 1)
        ]

    def least_left_out(self, noise: float = 0.0) -> float:
        """Return the penalty of the smallest such error; of those equal up to rounding the largest."""
        penalties = self.penalties(noise)
        errors = [self.left_out(one) for one in penalties]
        return max(
            one for one, error in zip(penalties, errors, strict=True) if error <= min(errors) * (1 + 1e-6)
        )
