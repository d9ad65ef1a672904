"""The gradient that a participant went along: worked numbers, and a training whose gradient is known."""

from __future__ import annotations

import pytest
import torch

from kdfed.controls import mean_gradient, weight_of_steps


def test_a_worked_number() -> None:
    """From 1 to 0.4 in three steps of rate 0.1: 0.6 / 0.3 = 2. Buffers have none."""
    start, trained = ({"w": torch.tensor([value]), "mean": torch.zeros(1)} for value in (1.0, 0.4))
    found = mean_gradient(start, trained, ["w"], lr=0.1, momentum=0.0, steps=3)
    assert list(found) == ["w"]
    torch.testing.assert_close(found["w"], torch.tensor([2.0]))


def test_a_worked_number_of_momentum() -> None:
    """Three steps with m = 0.5: 1 + (1 + 0.5) + (1 + 0.5 + 0.25) = 4.25."""
    assert weight_of_steps(3, 0.5) == pytest.approx(4.25)
    assert weight_of_steps(7, 0.0) == 7


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_of_a_constant_gradient_it_is_the_gradient(momentum: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([5.0]))
    optimizer = torch.optim.SGD([weight], lr=0.01, momentum=momentum)
    start = {"w": weight.detach().clone()}
    for _ in range(6):
        weight.grad = torch.tensor([3.0])
        optimizer.step()
    found = mean_gradient(start, {"w": weight.detach()}, ["w"], lr=0.01, momentum=momentum, steps=6)
    torch.testing.assert_close(found["w"], torch.tensor([3.0]), rtol=1e-4, atol=0)
