"""The local mode ``plain``: the task's own loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from kdfed.local.loss import LocalLoss, plain_loss
from kdfed.local.mode import LocalMode, Received
from kdfed.task import Task


class PlainLocal(LocalMode):
    """Cross entropy."""

    mode: Literal["plain"] = "plain"
    """The local mode."""

    needs_classes: ClassVar[str] = ""

    def loss(self, received: Received, task: Task) -> LocalLoss:
        """Return the task's own loss."""
        return plain_loss(task)
