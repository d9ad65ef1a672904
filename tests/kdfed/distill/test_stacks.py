from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdfed.distill import stacks
from kdfed.distill.partial import AdaptedTeacher
from kdfed.distill.stacks import logits_apart, teacher_logits
from kdfed.errors import LogitsError
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


def test_teachers_that_read_something_else_are_asked_on_that_in_every_set() -> None:
    models = [some_model(1), some_model(2), some_model(3, "cnn")]
    sets = [some_inputs(9), some_inputs(4)]
    found = logits_apart(
        models, ["", "twice", ""], lambda k: [(2.0 if k == 1 else 1.0) * one for one in sets]
    )
    for logits_KNC, inputs in zip(found, sets, strict=True):
        read = (inputs, 2.0 * inputs, inputs)
        alone = [predict(model, own) for model, own in zip(models, read, strict=True)]
        torch.testing.assert_close(logits_KNC, torch.stack(alone))


def test_what_a_teacher_does_not_know_is_taken_from_those_that_read_something_else_too() -> None:
    adapted = AdaptedTeacher(some_model(2), torch.ones(1), torch.zeros(1), (0, 1, None))
    models, inputs = [some_model(1), adapted, some_model(3)], some_inputs(9)
    together = teacher_logits(models, inputs)
    (apart,) = logits_apart(models, ["a", "b", "c"], lambda k: [inputs])
    torch.testing.assert_close(apart, together)
    assert not torch.allclose(apart[1], predict(adapted, inputs))


def test_a_broken_teacher_is_named_by_its_place_among_all() -> None:
    broken = some_model(1)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(LogitsError) as caught:
        logits_apart([some_model(2), some_model(3), broken], ["a", "b", "b"], lambda k: [some_inputs(3)])
    assert list(caught.value.teachers) == [2]


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
