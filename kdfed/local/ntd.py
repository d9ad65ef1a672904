r"""The local mode ``ntd``: distillation of what the received model says of the classes other than the label.

.. math:: \mathrm{CE} + \beta\,T^2\,\mathrm{KL}(\tilde\sigma(t / T) \,\|\, \tilde\sigma(s / T))

with the softmax :math:`\tilde\sigma` over all classes but the label, and logits t of the received model,
s of the trained one. What the participant's own labels teach is left alone; what it would forget of the
other classes is kept. With :math:`\beta = 0`, or two classes, it is plain training.

References
----------
Lee et al. 2022, "Preservation of the Global Knowledge by Not-True Distillation in Federated Learning",
arXiv 2106.03097, equations 4 and 5. Ours: the factor :math:`T^2`, as everywhere in kdfed; the source
has T = 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch.nn import functional

from kdfed.errors import KdfedError
from kdfed.local.loss import PLAIN, LocalLoss, cross_entropies
from kdfed.local.mode import LocalMode, Received
from kdfed.models import frozen
from kdfed.settings import Temperature, Weight
from kdfed.task import CLASSIFICATION, Task


class NTDLocal(LocalMode):
    """Cross entropy plus distillation of the classes that are not the label, from the received model."""

    mode: Literal["ntd"] = "ntd"
    """The local mode."""
    temperature: Temperature = 1.0
    """Temperature T, above 0."""
    beta: Weight = 1.0
    """Weight of the not-true distillation term; 0 is plain training."""

    needs_classes: ClassVar[str] = "it distils the classes that are not the label, and a number has none"

    def loss(self, received: Received, task: Task) -> LocalLoss:
        """Return cross entropy plus the not-true distillation.

        Raises
        ------
        KdfedError
            If the task has no classes.
        """
        if task is not CLASSIFICATION:
            raise KdfedError(
                f"local mode 'ntd' needs classes, got task {task.name!r}; use plain, proximal or kd"
            )
        if self.beta == 0:
            return PLAIN
        teacher = frozen(received())
        temperature = self.temperature

        def losses(inputs: torch.Tensor, logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                received_NC = teacher(inputs)
            log_own, log_received = (
                torch.log_softmax(_not_true(values, labels_N) / temperature, dim=1)
                for values in (logits_NC, received_NC)
            )
            divergence_N = functional.kl_div(log_own, log_received, reduction="none", log_target=True).sum(1)
            return cross_entropies(inputs, logits_NC, labels_N) + self.beta * temperature**2 * divergence_N

        return LocalLoss(losses)


def _not_true(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return the logits of the classes that are not the label, [N, C - 1]."""
    classes = logits_NC.shape[1]
    others = torch.arange(classes - 1, device=labels_N.device).expand(len(labels_N), -1)
    return logits_NC.gather(1, others + (others >= labels_N.unsqueeze(1)).long())
