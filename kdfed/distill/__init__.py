"""Knowledge distillation: one file per method, named here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from kdfed.config import ConsolidationSettings
from kdfed.distill import vanilla

MethodLoss: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, ConsolidationSettings], torch.Tensor
]
"""(student logits [N, C], target probabilities [N, C], labels [N] or None, settings) -> scalar loss."""

LOSSES: dict[str, MethodLoss] = {"vanilla": vanilla.loss}
"""Method -> loss."""

METHODS: dict[str, str] = {
    "vanilla": "cross entropy plus T^2 times KL from the teachers' target, with fixed T and weight",
}
"""What can stand in ``consolidation.method``."""
