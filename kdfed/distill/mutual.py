r"""Deep mutual learning (DML): models that teach each other, all of them trained.

Model i of M minimises

.. math:: \mathrm{CE}(z_i, y) + \frac{1}{M - 1} \sum_{j \ne i} \mathrm{KL}(p_j \,\|\, p_i)

with :math:`p = \mathrm{softmax}(z)`; without labels only the second term exists. Architectures may differ.

Deviation: all models step on the same outputs of a batch, where the source updates one after the other and
asks the first again before it updates the second. That would double the forward passes.

Shape suffixes: N examples, C classes.

References
----------
Zhang et al. 2018, "Deep Mutual Learning", arXiv 1706.00384, equations 3, 5 and 8.
Shen et al. 2020, "Federated Mutual Learning", arXiv 2006.16765: a participant's two models, with weights.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import ClassVar, Literal

import torch

from kdfed.augmentation import augment
from kdfed.distill.distillation import ConsolidationResult, Distillation
from kdfed.distill.method import KDMethod
from kdfed.seeding import torch_generator
from kdfed.train import clip_gradient, make_optimizer


class MutualConsolidation(KDMethod):
    """Deep mutual learning (Zhang et al. 2018): teachers and student train each other."""

    method: Literal["mutual"] = "mutual"
    """The KD method."""

    needs_classes: ClassVar[str] = ""
    needs_teachers: ClassVar[str] = "the teachers are trained too, which needs their weights"
    reads_labels: ClassVar[bool] = True
    knows: ClassVar[str] = "which trains the teachers too"
    uses_validation_labels: ClassVar[bool | None] = False

    def distil(self, work: Distillation) -> ConsolidationResult:
        """Train the student and copies of the teachers on each other."""
        peers = [deepcopy(teacher).to(work.device) for teacher in work.models]
        optimisers = [make_optimizer(peer, self) for peer in peers]
        generator = torch_generator(work.seed, "augmentation")

        def batch_loss(index: torch.Tensor) -> torch.Tensor:
            inputs = work.inputs[index]
            if work.is_fresh:
                inputs = augment(inputs, self.augmentation, generator)
            labels_N = None if work.labels_N is None else work.labels_N[index]
            outputs = [model(inputs) for model in (work.student, *peers)]
            own, *others = work.task.peer_losses(outputs, labels_N)
            for peer, optimiser, loss in zip(peers, optimisers, others, strict=True):
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                clip_gradient(peer, self.clip)
                optimiser.step()
            return own

        result = work.train(batch_loss, peers=peers, optimisers=optimisers)
        return replace(result, steps=result.steps * (1 + len(peers)))
