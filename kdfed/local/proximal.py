r"""The local mode ``proximal``: the task's own loss plus a pull towards the received weights.

.. math:: \mathrm{CE} + \frac{\mu}{2} \lVert w - w^t \rVert^2

over all parameters w; :math:`w^t` are the received ones. With :math:`\mu = 0` it is plain training.

References
----------
Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127, equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from kdfed.local.loss import LocalLoss, plain_loss
from kdfed.local.mode import LocalMode, Received
from kdfed.settings import Weight
from kdfed.task import Task


class ProximalLocal(LocalMode):
    """Cross entropy plus ``mu / 2 * ||w - w_received||^2`` (FedProx, Li et al. 2020, equation 2)."""

    mode: Literal["proximal"] = "proximal"
    """The local mode."""
    mu: Weight
    """Weight of the proximal term; 0 is plain training."""

    needs_classes: ClassVar[str] = ""

    def loss(self, received: Received, task: Task) -> LocalLoss:
        """Return the task's own loss plus the proximal term."""
        plain = plain_loss(task)
        if self.mu == 0:
            return plain
        anchors = {name: parameter.detach().clone() for name, parameter in received().named_parameters()}

        def penalty(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
            distances = [
                # Of a parameter without dimensions, [B], there is nothing to flatten.
                (values_B - anchors[name]).square().unsqueeze(-1).flatten(1).sum(1)
                for name, values_B in parameters.items()
            ]
            return self.mu / 2 * torch.stack(distances).sum(0)

        return LocalLoss(plain.examples, penalty)
