from __future__ import annotations

import pytest
import torch
from torch import nn

from kdfed.local import PLAIN, ProximalLocal
from kdfed.task import CLASSIFICATION
from tests.kdfed.local.training import some_examples, some_model, train_local


def test_a_worked_proximal_term() -> None:
    """Received weights (1, 2) and biases (0, 0); now (4, 6) and (1, 0): squared distance 9 + 16 + 1 = 26,
    times mu / 2 = 0.05.
    """
    model = nn.Linear(1, 2)
    model.load_state_dict({"weight": torch.tensor([[1.0], [2.0]]), "bias": torch.zeros(2)})
    loss = ProximalLocal(mu=0.1).loss(lambda: model, CLASSIFICATION)
    model.load_state_dict({"weight": torch.tensor([[4.0], [6.0]]), "bias": torch.tensor([1.0, 0.0])})
    inputs, labels = torch.tensor([[1.0]]), torch.tensor([0])
    difference = loss.mean(model, inputs, labels) - PLAIN.mean(model, inputs, labels)
    assert difference.item() == pytest.approx(1.3, rel=1e-5)


def test_the_proximal_gradient_is_mu_times_the_way_from_the_received_weights() -> None:
    model = some_model()
    loss = ProximalLocal(mu=0.3).loss(lambda: model, CLASSIFICATION)
    moved = some_model(seed=1)
    examples = some_examples()
    gradients = []
    for function in (loss, PLAIN):
        moved.zero_grad()
        function.mean(moved, examples.inputs, examples.labels).backward()
        gradients.append(
            [parameter.grad.clone() for parameter in moved.parameters() if parameter.grad is not None]
        )
    for pulled, plain, now, received in zip(*gradients, moved.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(pulled - plain, 0.3 * (now - received).detach(), rtol=1e-3, atol=1e-6)


def test_a_larger_mu_stays_nearer_to_the_received_weights() -> None:
    def distance(mu: float) -> float:
        model = some_model()
        train_local(model, some_examples(), ProximalLocal(mu=mu, epochs=3), seed=0)
        pairs = zip(model.parameters(), some_model().parameters(), strict=True)
        return sum(float((now - before).detach().square().sum()) for now, before in pairs)

    assert distance(5.0) < distance(0.1) < distance(0.0)
