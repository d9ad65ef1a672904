r"""The ensemble ``stacked``: a linear map of all teachers' outputs, fitted on the server's labels.

With the logarithms of the probabilities :math:`q_k = \log \mathrm{softmax}(t_k)` of the K teachers,

.. math:: z = \sum_k M_k q_k + m, \quad p = \mathrm{softmax}(s z / T)

where M and m are the least-squares map to one-hot labels with a penalty (:mod:`kdfed.least_squares`, chosen
by generalised cross-validation), and s is the scale that suits the fitted examples best, each answered by the
map that was fitted without it (:mod:`kdfed.logit_scale`). So a teacher that answers 3 to every 8 is still of
use.

A share ``unseen`` of the validation split is not fitted on: the ensemble's and the student's accuracies, and
``select: best``, use that alone. The fit has the first example of each class, and of the others, class by
class, evenly spread ones.

One teacher alone is its own target.

Shape suffixes: K teachers, N examples, C classes, F features (the K C logarithms).

References
----------
Wolpert 1992, "Stacked Generalization", Neural Networks 5 (2).
Breiman 1996, "Stacked Regressions", Machine Learning 24: least squares with a penalty.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from kdfed.ensembles.ensemble import Ensemble
from kdfed.errors import KdfedError
from kdfed.least_squares import LeastSquares
from kdfed.logit_scale import best_scale
from kdfed.thing import Refusal

if TYPE_CHECKING:
    from kdfed.data import PreparedData


class Stacked(Ensemble):
    """A linear map of all teachers' outputs, fitted on a part of the validation split (Wolpert 1992)."""

    ensemble: Literal["stacked"] = "stacked"
    """The ensemble."""
    unseen: Annotated[float, Field(ge=0.1, le=0.9)] = 0.25
    """Share of the validation split that the map is not fitted on. Accuracies of ensemble and student, and
    the selection of a student, use it alone."""

    needs_validation: ClassVar[bool] = True

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for the teachers' weights."""
        if arm.teachers.upload == "logits":
            yield Refusal(
                ".ensemble",
                "'stacked' runs teachers on the validation split and needs teachers.upload 'weights'",
                ("teachers.upload",),
            )

    def misfits(self, arm: Any, data: PreparedData) -> Iterator[Refusal]:
        """Look whether the validation split can be fitted on and judged by."""
        try:
            self.unseen_N(torch.from_numpy(data.dataset.labels[data.splits.validation]))
        except KdfedError as error:
            yield Refusal(".ensemble", str(error))

    def unseen_N(self, labels_N: torch.Tensor) -> torch.Tensor:  # noqa: N802 - shape suffix
        """Return which validation examples the map is not fitted on, bool [N].

        Raises
        ------
        KdfedError
            If the split is too small for that.
        """
        labels = labels_N.cpu().numpy()
        order = np.argsort(labels, kind="stable")
        is_first = np.append(True, np.diff(labels[order]) != 0)[: len(order)]
        rest = order[~is_first]
        steps = np.floor(self.unseen * np.arange(len(rest) + 1) + 1e-9)
        chosen = rest[np.diff(steps) > 0]
        if len(chosen) == 0:
            raise KdfedError(
                f"ensemble 'stacked': expected validation examples to fit on and others to judge by, got "
                f"{len(labels)} of {int(is_first.sum())} classes; raise data.splits.validation"
            )
        mask_N = torch.zeros(len(labels), dtype=torch.bool)
        mask_N[torch.from_numpy(chosen)] = True
        return mask_N

    def scores(
        self, validation_KNC: torch.Tensor | None, labels_N: torch.Tensor, label_counts: np.ndarray | None
    ) -> torch.Tensor | None:
        """Return the map, scale included, float64 [K, C + 1, C]; None for one teacher alone.

        The first C rows of a teacher map its logarithms, and the last rows of all add up to the bias.
        """
        if validation_KNC is None or len(validation_KNC) == 1:
            return None
        fit_N = ~self.unseen_N(labels_N)
        teachers, classes = len(validation_KNC), validation_KNC.shape[2]
        logs_KNC = torch.log_softmax(validation_KNC.cpu().double(), dim=2)[:, fit_N]
        features_NF = logs_KNC.permute(1, 0, 2).flatten(1)
        labels_N = labels_N.cpu()[fit_N]
        weight_CF, bias_C = fitted_map(features_NF, labels_N, classes)
        weight_KCC = weight_CF.T.reshape(teachers, classes, classes)
        return torch.cat((weight_KCC, (bias_C / teachers).expand(teachers, 1, classes)), dim=1)

    def target(
        self, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the softmax of the mapped outputs, [N, C].

        Raises
        ------
        KdfedError
            If the map is not one of these teachers.
        """
        teachers, _, classes = logits_KNC.shape
        if teachers == 1:
            return torch.softmax(logits_KNC[0] / temperature, dim=1)
        expected = (teachers, classes + 1, classes)
        if scores_KC is None or tuple(scores_KC.shape) != expected:
            got = "none" if scores_KC is None else f"shape {tuple(scores_KC.shape)}"
            raise KdfedError(f"expected the map of the teachers' outputs, shape {expected}, got {got}")
        map_KCC = scores_KC.to(logits_KNC)
        logs_KNC = torch.log_softmax(logits_KNC, dim=2)
        mapped_NC = torch.einsum("knc,kcd->nd", logs_KNC, map_KCC[:, :-1]) + map_KCC[:, -1].sum(0)
        return torch.softmax(mapped_NC / temperature, dim=1)


def fitted_map(
    features_NF: torch.Tensor, labels_N: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights [C, F] and the bias [C] of the map, scale included.

    Parameters
    ----------
    features_NF
        Float64 [N, F].
    labels_N
        Classes, int64 [N].
    classes
        C.
    """
    wanted_NC = functional.one_hot(labels_N, classes).double()
    squares = LeastSquares.from_examples(features_NF, wanted_NC)
    penalty = squares.least_left_out()
    weight_CF, bias_C = squares.solution(penalty)
    rotated_NE = (features_NF - squares.mean_D) @ squares.vectors_DE
    leverage_N = 1 / len(labels_N) + (rotated_NE.square() / (squares.values_E + penalty)).sum(1)
    missed_NC = wanted_NC - features_NF @ weight_CF.T - bias_C
    left_out_NC = wanted_NC - missed_NC / (1 - leverage_N).clamp_min(1e-6).unsqueeze(1)
    scale = best_scale(left_out_NC, labels_N)
    return scale * weight_CF, scale * bias_C
