r"""The local mode ``mutual``: the received model r and the participant's own p teach each other.

.. math::

    \beta\,\mathrm{CE}(r) + (1 - \beta)\,\mathrm{KL}(p \,\|\, r)
    + \alpha\,\mathrm{CE}(p) + (1 - \alpha)\,\mathrm{KL}(r \,\|\, p)

where no gradient flows into the first argument of KL, so that each model gets that of its own loss. The
model that is trained is a :class:`kdfed.local.pairs.ModelPair`, whose logits are those of both, [N, 2C]. A
regression has squared errors and squared distances in place of CE and KL.

References
----------
Shen et al. 2020, "Federated Mutual Learning", arXiv 2006.16765: the losses of the personal model and of
the received one, the "meme".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch

from kdfed.ensembles.mean_logits import MeanLogits
from kdfed.local.loss import LocalLoss
from kdfed.local.mode import LocalMode, Received
from kdfed.losses import weighted_losses
from kdfed.settings import ModelSettings, Share
from kdfed.task import CLASSIFICATION, Task
from kdfed.thing import Refusal


class MutualLocal(LocalMode):
    """The received model and a personal one teach each other (FML, Shen et al. 2020), at temperature 1.

    The received model is uploaded; the personal one stays with its participant from round to round.
    """

    mode: Literal["mutual"] = "mutual"
    """The local mode."""
    alpha: Share = 0.5
    """Weight of cross entropy in the personal model's loss, in [0, 1]; the rest goes to distillation from the
    received model."""
    beta: Share = 0.5
    """Weight of cross entropy in the received model's loss, in [0, 1]; the rest goes to distillation from the
    personal model. 1 is plain training of the received model."""
    model: ModelSettings | None = None
    """The personal models' architecture. Default: the federated model."""

    needs_classes: ClassVar[str] = ""

    def personal_model(self, federated: ModelSettings) -> ModelSettings | None:
        """Return the personal models' architecture."""
        return federated if self.model is None else self.model

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse a personal model that reads something else than the received one beside it."""
        yield from super().refusals(arm)
        if self.model is not None and self.model.reads != arm.model.reads:
            yield Refusal(
                ".model",
                f"expected a personal model that reads what the federated one reads, {arm.model.title!r}, "
                f"got {self.model.title!r}: both are trained on one batch; name the same backbone in both, "
                "or none",
                ("model",),
            )

    def loss(self, received: Received, task: Task) -> LocalLoss:
        """Return the losses of both models together."""
        ensemble = MeanLogits()

        def soft(
            own: torch.Tensor, peer: torch.Tensor, labels_N: torch.Tensor, weight: float
        ) -> torch.Tensor:
            target_NC = task.target(ensemble, peer.unsqueeze(0), 1.0, None)
            return task.soft_losses(own, target_NC, labels_N, 1.0, 1 - weight)

        weighted = weighted_losses if task is CLASSIFICATION else soft

        def losses(inputs: torch.Tensor, logits_N2C: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
            received_NC, personal_NC = logits_N2C.chunk(2, dim=1)
            received_N = weighted(received_NC, personal_NC, labels_N, self.beta)
            return received_N + weighted(personal_NC, received_NC, labels_N, self.alpha)

        return LocalLoss(losses)
