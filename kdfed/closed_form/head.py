r"""What a closed-form head owes: a linear layer from sums over the participants' features, in one exchange.

Each participant computes the features of its examples with a model that everybody has, and sends sums over
them (:mod:`kdfed.closed_form.sums`). The server adds these and solves for the head. Nothing is trained, and
nothing depends on who held which example.

.. code-block:: python

    arrays = head.statistics(features_ND, labels_N, classes, task, seed)  # on each participant
    problem = head.problem_with(arrays, dims, classes, task, examples)    # on the server, before it adds
    sums = head.sums(arrays) + head.sums(other_arrays)
    linear = head.solve(sums, dims, seed)

No head here is distillation: they are rivals of it, and starts that it must beat.

Shape suffixes: N examples, D features, d features that are kept, C classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from kdfed.arrays import Spec, problem_with_arrays
from kdfed.closed_form.calibration import scale_by_labels, scale_by_sums
from kdfed.closed_form.linear import Linear
from kdfed.closed_form.projections import Projection, projection_matrix
from kdfed.closed_form.sums import Sums, Upload, decoded, encoded, problem_with_sums, spec_of_sums, sums_of
from kdfed.errors import KdfedError
from kdfed.task import Task
from kdfed.thing import Refusal, Thing

if TYPE_CHECKING:
    from kdfed.data import Examples


class ClosedFormHead(Thing):
    """A linear head that is solved for, not trained."""

    head: str
    """The closed-form head."""
    upload: Upload = "float32"
    """Type of the numbers that a participant sends; they are computed and added in float64. Features whose
    mean is thousands of times their spread need ``float64``."""
    dims: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Keep so many features at most, which bounds the bytes. Default: all."""
    projection: Projection = "random"
    """How features become fewer: a ``random`` projection of the run's seed, or ``pool``, the means of
    consecutive features. Only with ``dims``."""
    calibrate: Literal["no", "sums", "validation"] = "no"
    """Scale the logits, so that their softmax is as sure as it is right: by the summed statistics alone, or
    by the labels of the validation split. The answers stay the same; it matters where training goes on. A
    regression has no softmax, and none of this."""

    needs_gram: ClassVar[bool] = True
    """Whether participants send a Gram matrix."""

    @abstractmethod
    def fit(self, sums: Sums, validation: Examples | None) -> Linear:
        """Return the head on the features that the sums are over, in float64.

        Parameters
        ----------
        sums
            Of all participants, at least one example.
        validation
            Features [N, D] and labels of the server, for heads that choose by them; None where there are
            none.
        """

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse what would have no effect."""
        if self.projection != "random" and self.dims is None:
            yield Refusal(".projection", "has no effect without dims; set it or remove this", (".dims",))
        if self.calibrate != "no" and arm.data.task == "regression":
            yield Refusal(
                ".calibrate",
                f"expected 'no' with data.task 'regression', which has no softmax, got {self.calibrate!r}",
                ("data.task",),
            )

    def server_labels(self) -> frozenset[str]:
        """Return of which of the server's splits it chooses with labels: validation, or none."""
        return frozenset(["validation"] * (self.calibrate == "validation"))

    def kept(self, dims: int) -> int:
        """Return how many of D features are kept, d."""
        return dims if self.dims is None else min(dims, self.dims)

    def statistics(
        self, features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, task: Task, seed: int
    ) -> dict[str, np.ndarray]:
        """Return what a participant sends; its shapes are those of :meth:`spec`.

        Parameters
        ----------
        features_ND
            Float, on any device, [N, D]. N may be 0.
        labels_N
            Classes, int64 [N], or standardised numbers, float [N].
        classes
            C; 1 in a regression.
        task
            What is learnt.
        seed
            The server's, the same for all participants.

        Raises
        ------
        KdfedError
            If features or labels are not what is described here, or too large for ``upload``.
        """
        if features_ND.ndim == 2:
            features_ND = self._reduced(features_ND, seed)
        sums = sums_of(features_ND, labels_N, classes, task, gram=self.needs_gram)
        return encoded(sums, self.upload)

    def spec(self, dims: int, classes: int, task: Task) -> Spec:
        """Return shapes and types of what a participant sends, from D, C and the task."""
        return spec_of_sums(self.kept(dims), classes, task, self.upload, gram=self.needs_gram)

    def problem_with(
        self,
        arrays: Mapping[str, np.ndarray],
        dims: int,
        classes: int,
        task: Task,
        examples: int,
        most: float = math.inf,
        most_label: float = math.inf,
    ) -> str | None:
        """Say what is wrong with a participant's arrays; None when they may be added.

        Parameters
        ----------
        arrays
            What arrived.
        dims, classes, task
            D, C and what is learnt.
        examples
            How many examples the participant says it has.
        most, most_label
            The largest mean of squared lengths of features (:meth:`size`) and of squared labels. Default: no
            bound, which leaves it to a participant to drown all others.
        """
        wrong = problem_with_arrays(arrays, self.spec(dims, classes, task))
        if wrong is None:
            wrong = problem_with_sums(arrays, self.upload, examples, most, most_label)
        return wrong

    def size(self, features_ND: torch.Tensor, seed: int) -> float:
        """Return the mean of the squared lengths of features as participants sum them; N at least 1."""
        return float(self._reduced(features_ND, seed).cpu().double().square().sum(1).mean())

    def sums(self, arrays: Mapping[str, np.ndarray]) -> Sums:
        """Return what a participant sent in float64, ready to be added: ``head.sums(a) + head.sums(b)``."""
        return decoded(arrays)

    def solve(self, sums: Sums, dims: int, seed: int, validation: Examples | None = None) -> Linear:
        """Return the head on all D features, in float32.

        Parameters
        ----------
        sums
            Of all participants.
        dims
            D, the features of the model that made them.
        seed
            The one that the participants were sent.
        validation
            Features [N, D] and labels of the server, where :meth:`server_labels` names them.

        Raises
        ------
        KdfedError
            If there is no example, or validation examples are needed and there is none.
        """
        if sums.examples == 0:
            raise KdfedError(
                "expected statistics of at least one example, got none; look at the participants"
            )
        if "validation" not in self.server_labels():
            validation = None
        elif validation is None or len(validation) == 0:
            raise KdfedError(
                f"head {self.head!r}: expected validation examples to choose with, got none; choose by the "
                "sums"
            )
        if validation is not None:
            validation = replace(validation, inputs=self._reduced(validation.inputs, seed))
        linear = self.fit(sums, validation)
        if sums.labels is None and self.calibrate == "sums":
            linear = linear.scaled(scale_by_sums(linear, sums, seed))
        if sums.labels is None and self.calibrate == "validation":
            assert validation is not None
            linear = linear.scaled(scale_by_labels(linear, validation.inputs, validation.labels))
        if self.kept(dims) < dims:
            matrix_dD = projection_matrix(dims, self.kept(dims), self.projection, seed)
            linear = replace(linear, weight_CD=linear.weight_CD @ matrix_dD)
        return replace(linear, weight_CD=linear.weight_CD.float(), bias_C=linear.bias_C.float())

    def _reduced(self, features_ND: torch.Tensor, seed: int) -> torch.Tensor:
        dims = features_ND.shape[1]
        if self.kept(dims) == dims:
            return features_ND
        matrix_dD = projection_matrix(dims, self.kept(dims), self.projection, seed)
        return features_ND.detach().cpu().double() @ matrix_dD.T
