r"""The local mode ``kd``: distillation from the received model, which stays frozen (in evaluation mode).

.. math:: (1 - w)\,\mathrm{CE} + w\,T^2\,\mathrm{KL}(\sigma(t / T) \,\|\, \sigma(s / T))

with the softmax :math:`\sigma` and logits t of the received model, s of the trained one. With w = 0 it
is plain training. Other tasks have their own target and loss (:mod:`kdfed.task`).

References
----------
Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch

from kdfed.ensembles.mean_logits import MeanLogits
from kdfed.local.loss import LocalLoss, plain_loss
from kdfed.local.mode import LocalMode, Received
from kdfed.models import frozen
from kdfed.settings import Share, Temperature
from kdfed.task import Task, temperature_problem
from kdfed.thing import Refusal


class KDLocal(LocalMode):
    """Cross entropy plus distillation from the received model, which stays frozen."""

    mode: Literal["kd"] = "kd"
    """The local mode."""
    temperature: Temperature = 3.0
    """Temperature T, above 0."""
    weight: Share = 0.5
    """Weight w of the distillation term in [0, 1]; 0 is plain training."""

    needs_classes: ClassVar[str] = ""

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse a temperature where there is no softmax."""
        problem = temperature_problem(arm.data.task, self.temperature)
        if problem is not None:
            yield Refusal(".temperature", problem, ("data.task",))

    def loss(self, received: Received, task: Task) -> LocalLoss:
        """Return the task's own loss blended with its distance to the received model's outputs."""
        if self.weight == 0:
            return plain_loss(task)
        teacher, ensemble = frozen(received()), MeanLogits()

        def losses(inputs: torch.Tensor, logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                target_NC = task.target(ensemble, teacher(inputs).unsqueeze(0), self.temperature, None)
            return task.soft_losses(logits_NC, target_NC, labels_N, self.temperature, self.weight)

        return LocalLoss(losses)
