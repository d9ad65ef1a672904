from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdfed.local import PLAIN, NTDLocal
from kdfed.task import CLASSIFICATION


def test_not_true_distillation_is_a_divergence_over_the_other_classes() -> None:
    """Worked: label 1 of 3, so classes 0 and 2 remain, with probabilities (1/2, 1/2) and (3/4, 1/4)."""
    fixed = nn.Linear(1, 3)
    with torch.no_grad():
        fixed.weight.zero_()
        fixed.bias.copy_(torch.tensor([math.log(3), 7.0, 0.0]))
    loss = NTDLocal(beta=0.5).loss(lambda: fixed, CLASSIFICATION)
    logits, labels = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([1])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    entropy = -2 + math.log(2 + math.exp(2))
    assert loss.examples(torch.zeros(1, 1), logits, labels).item() == pytest.approx(
        entropy + 0.5 * divergence
    )


def test_not_true_distillation_does_not_look_at_the_received_models_logit_of_the_label() -> None:
    received, changed = nn.Linear(4, 3), nn.Linear(4, 3)
    inputs, logits = torch.randn(6, 4), torch.randn(6, 3)
    changed.load_state_dict(received.state_dict())
    with torch.no_grad():
        changed.bias[2] += 5.0
    settings = NTDLocal(temperature=3.0)
    same, other = torch.full((6,), 2), torch.full((6,), 0)
    one, two = (settings.loss(lambda model=model: model, CLASSIFICATION) for model in (received, changed))
    torch.testing.assert_close(one.examples(inputs, logits, same), two.examples(inputs, logits, same))
    assert not torch.allclose(one.examples(inputs, logits, other), two.examples(inputs, logits, other))


def test_with_two_classes_not_true_distillation_is_plain() -> None:
    loss = NTDLocal().loss(lambda: nn.Linear(4, 2), CLASSIFICATION)
    inputs, logits, labels = torch.randn(6, 4), torch.randn(6, 2), torch.randint(2, (6,))
    torch.testing.assert_close(loss.examples(inputs, logits, labels), PLAIN.examples(inputs, logits, labels))
