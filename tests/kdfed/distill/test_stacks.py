from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdfed.distill import stacks
from kdfed.distill.stacks import teacher_logits
from kdfed.models import build_model
from kdfed.settings import ModelSettings
from kdfed.train import predict

CLASSES = 3


def some_inputs(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def some_model(seed: int, name: str = "mlp") -> nn.Module:
    return build_model(ModelSettings(name=name), (1, 8, 8), CLASSES, seed)


def test_teachers_of_many_architectures_keep_their_places_in_one_pass_each() -> None:
    mixed = [some_model(1), some_model(2, "cnn"), some_model(3), some_model(4, "cnn")]
    inputs = some_inputs(9)
    together = teacher_logits(mixed, inputs)
    torch.testing.assert_close(together, torch.stack([predict(one, inputs) for one in mixed]))


class Signed(nn.Linear):
    """Two of these can look alike and compute something else."""

    def __init__(self, sign: float) -> None:
        super().__init__(4, CLASSES)
        self.sign = sign

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.sign * super().forward(inputs)


def test_teachers_that_only_look_alike_are_not_run_as_one() -> None:
    twins = [Signed(1.0), Signed(-1.0), Signed(1.0)]
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    together = teacher_logits(twins, inputs)
    torch.testing.assert_close(together, torch.stack([predict(one, inputs) for one in twins]))


def test_teachers_whose_fold_mixes_them_up_are_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers, inputs = [some_model(seed) for seed in range(3)], some_inputs(40)
    right, folded, calls = teacher_logits(teachers, inputs), stacks.predict_stack, []

    def mixed_up(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return folded(*arguments).roll(1, 0)

    monkeypatch.setattr(stacks, "predict_stack", mixed_up)
    torch.testing.assert_close(teacher_logits(teachers, inputs), right)
    assert calls
