"""kdfed's optimisers have the bits of torch.optim's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kdfed.errors import KdfedError
from kdfed.optimisers import Optimiser
from kdfed.settings import OptimiserSettings

KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

CASES: list[dict[str, Any]] = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.01},
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.3},
]


def some_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.ReLU(), nn.Linear(3 * 6 * 6, 4))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_have_the_bits_of_torchs_class(case: dict[str, Any], channels_last: bool) -> None:
    """Five steps with a rate that changes; one parameter gets its first gradient in the third."""
    settings = OptimiserSettings(lr=0.05, **case)
    ours = some_model()
    if channels_last:
        ours = ours.to(memory_format=torch.channels_last)
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours.state_dict())
    optimiser = Optimiser(ours.parameters(), settings)
    numbers = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        numbers["momentum"] = settings.momentum
    twin = KINDS[settings.optimizer](theirs.parameters(), **numbers)
    for step in range(5):
        inputs = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(step))
        optimiser.lr = twin.param_groups[0]["lr"] = settings.lr / (1 + step)
        optimiser.zero_grad()
        twin.zero_grad()
        for model in (ours, theirs):
            model(inputs).square().mean().backward()
            if step < 2:
                model[0].bias.grad = None
        optimiser.step()
        twin.step()
        for (name, one), two in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(one, two), (step, name)
    assert not any(torch.equal(values, start[name]) for name, values in ours.state_dict().items())


def test_gradients_are_forgotten() -> None:
    model = some_model()
    model(torch.ones(1, 2, 8, 8)).sum().backward()
    Optimiser(model.parameters(), OptimiserSettings()).zero_grad()
    assert [parameter.grad for parameter in model.parameters()] == [None] * 4


def test_an_unknown_name_is_refused() -> None:
    settings = OptimiserSettings().model_copy(update={"optimizer": "own"})
    with pytest.raises(KdfedError, match=r"expected one of sgd, adam, adamw, got 'own'; kdfed\.optimisers"):
        Optimiser([], settings)
