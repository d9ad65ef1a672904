"""What a participant minimises, and plain training by the task's own loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from kdfed.task import CLASSIFICATION, Task

ExampleLosses: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(inputs [N, ...], logits [N, C], labels [N]) -> losses [N]."""

Penalty: TypeAlias = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""Parameters by name, each [B, *shape] for B models -> penalties [B]."""


@dataclass(frozen=True)
class LocalLoss:
    """What a participant minimises: the mean of its examples' losses, plus a penalty on its weights.

    Written so that one participant and a whole cohort are trained by the same function: nothing in it may
    mix examples, or models.

    Parameters
    ----------
    examples
        Loss of every example, in nats (of a regression: in variances of the label).
    penalty
        Penalty on the parameters of every model. Default: none.
    """

    examples: ExampleLosses
    penalty: Penalty | None = None

    def mean(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return what one model minimises on a batch: a scalar."""
        mean = self.examples(inputs, model(inputs), labels).mean()
        if self.penalty is None:
            return mean
        stacked = {name: parameter.unsqueeze(0) for name, parameter in model.named_parameters()}
        return mean + self.penalty(stacked)[0]


def cross_entropies(inputs: torch.Tensor, logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of every example, [N], in nats."""
    return CLASSIFICATION.losses(logits_NC, labels_N)


PLAIN = LocalLoss(cross_entropies)
"""Cross entropy: plain training of a classification."""


def plain_loss(task: Task) -> LocalLoss:
    """Return plain training: the task's own loss. Of a classification it is :data:`PLAIN`."""
    if task is CLASSIFICATION:
        return PLAIN
    return LocalLoss(lambda inputs, outputs_NC, labels_N: task.losses(outputs_NC, labels_N))
