r"""Data-partitioning knowledge distillation (DP-KD): each example from whoever is surest of it.

The source has one teacher. An example x goes to the teacher, or to a frozen copy of the student as it was,
by which of them gives the true class the larger probability; without labels, by which of them gives its own
top class the larger one. The student distils from the model that got the example:

.. math:: T^2\,\mathrm{KL}(\mathrm{softmax}(z_{a(x)} / T) \,\|\, \mathrm{softmax}(s / T)), \quad
          a(x) = \arg\max_k\ p_k(y \mid x) \ \text{or}\ \arg\max_k \max_c\ p_k(c \mid x)

Ours: several teachers (the arg max then runs over all of them and the frozen student), the weight of cross
entropy beside it, and that among equals the first teacher wins, and the frozen student comes last.

Shape suffixes: K teachers, N examples, C classes.

References
----------
Roth et al. 2024, "Fantastic Gains and Where to Find Them", arXiv 2310.17653, section 4.2.
"""

from __future__ import annotations

from copy import deepcopy
from typing import ClassVar, Literal

import torch

from kdfed.distill.distillation import ConsolidationResult, Distillation
from kdfed.distill.method import KDMethod
from kdfed.errors import KdfedError
from kdfed.settings import Share, Temperature
from kdfed.task import CLASSIFICATION
from kdfed.train import predict


class PartitionedConsolidation(KDMethod):
    """Data-partitioning KD (Roth et al. 2024): each example from whichever model is surest of it."""

    method: Literal["partitioned"] = "partitioned"
    """The KD method."""
    temperature: Temperature = 3.0
    """Temperature T of the distillation term, above 0."""
    weight: Share = 1.0
    """Weight w of the distillation term; 1 - w goes to cross entropy. Below 1 only with ``labels``."""

    needs_classes: ClassVar[str] = (
        "it asks which model is surest, and a number says nothing of how sure a model is"
    )
    reads_labels: ClassVar[bool] = True  # they say which model is surest
    knows: ClassVar[str] = "which chooses example by example who teaches"
    uses_validation_labels: ClassVar[bool | None] = False

    def distil(self, work: Distillation) -> ConsolidationResult:
        """Minimise the soft loss towards whoever is surest, the student as it was included."""
        if work.task is not CLASSIFICATION:
            raise KdfedError(
                f"method 'partitioned' asks which model is surest, which task {work.task.name!r} does not "
                "tell; use vanilla, tuned or mutual"
            )
        frozen = deepcopy(work.student)

        def target_of(
            logits_KNC: torch.Tensor, inputs: torch.Tensor, labels_N: torch.Tensor | None
        ) -> torch.Tensor:
            labels_N = None if labels_N is None else labels_N.cpu()
            return target(logits_KNC, predict(frozen, inputs), labels_N, self.temperature)

        def losses_of(
            outputs_NC: torch.Tensor, target_NC: torch.Tensor, labels_N: torch.Tensor | None
        ) -> torch.Tensor:
            return work.task.soft_losses(outputs_NC, target_NC, labels_N, self.temperature, self.weight)

        return work.follow(target_of, losses_of)


def assign(
    teachers_KNC: torch.Tensor, student_NC: torch.Tensor, labels_N: torch.Tensor | None
) -> torch.Tensor:
    """Say which model each example goes to.

    Parameters
    ----------
    teachers_KNC
        Teachers' logits, float [K, N, C].
    student_NC
        Logits of the student before it is trained, float [N, C].
    labels_N
        True classes, int64 [N], or None on an unlabelled transfer set.

    Returns
    -------
    torch.Tensor
        int64 [N]: 0 to K - 1 for a teacher, K for the frozen student.

    Examples
    --------
    >>> teacher, student = torch.tensor([[[4.0, 0.0], [1.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> assign(teacher, student, None).tolist()
    [0, 1]
    >>> assign(teacher, student, torch.tensor([1, 0])).tolist()  # the one that doubts the wrong class less
    [1, 0]
    """
    probabilities = torch.softmax(torch.cat([teachers_KNC, student_NC.unsqueeze(0)]), dim=2)
    if labels_N is None:
        sure = probabilities.amax(2)
    else:
        sure = probabilities.gather(2, labels_N.view(1, -1, 1).expand(len(probabilities), -1, 1)).squeeze(2)
    return sure.argmax(0)


def target(
    teachers_KNC: torch.Tensor, student_NC: torch.Tensor, labels_N: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Return what the student distils: probabilities [N, C] at this temperature; see :func:`assign`."""
    every = torch.cat([teachers_KNC, student_NC.unsqueeze(0)])
    chosen_N = assign(teachers_KNC, student_NC, labels_N)
    return torch.softmax(every[chosen_N, torch.arange(len(chosen_N))] / temperature, dim=1)
