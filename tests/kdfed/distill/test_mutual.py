from __future__ import annotations

import math

import pytest
import torch

from kdfed.distill.mutual import losses
from kdfed.losses import weighted_losses

N, C = 5, 3


def some_logits(models: int, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(N, C, generator=generator).requires_grad_() for _ in range(models)]
    return logits, torch.randint(C, (N,), generator=generator)


def slow_losses(logits: list[torch.Tensor], labels: torch.Tensor | None) -> list[float]:
    """Equation 8 of the source, number by number."""
    shares = [
        [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in own.tolist()] for own in logits
    ]
    result = []
    for i, own in enumerate(shares):
        loss = 0.0
        for n in range(N):
            for j, peer in enumerate(shares):
                if j != i:
                    divergence = sum(q * math.log(q / p) for q, p in zip(peer[n], own[n], strict=True))
                    loss += divergence / (len(shares) - 1)
            if labels is not None:
                loss -= math.log(own[n][int(labels[n])])
        result.append(loss / N)
    return result


@pytest.mark.parametrize("models", [2, 3, 5])
@pytest.mark.parametrize("labelled", [False, True])
def test_losses_agree_with_the_slow_twin(models: int, labelled: bool) -> None:
    logits, labels = some_logits(models)
    asked = labels if labelled else None
    assert [loss.item() for loss in losses(logits, asked)] == pytest.approx(slow_losses(logits, asked))


def test_a_worked_example() -> None:
    """Probabilities (1/2, 1/2) and (3/4, 1/4): KL(q || p) = 3/4 ln(3/2) + 1/4 ln(1/2), and so on."""
    one, two = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    first, second = losses([one, two], torch.tensor([0]))
    assert first.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5) + math.log(2))
    assert second.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2) - math.log(0.75))


def test_models_that_agree_have_nothing_to_teach_each_other() -> None:
    (logits, *_), _ = some_logits(1)
    assert [loss.item() for loss in losses([logits, logits + 3, logits - 1], None)] == pytest.approx(
        [0.0] * 3, abs=1e-6
    )


def test_no_gradient_flows_into_a_peer() -> None:
    logits, labels = some_logits(3)
    losses(logits, labels)[1].backward()
    assert logits[0].grad is None
    assert logits[2].grad is None
    assert logits[1].grad is not None


def test_the_order_of_peers_does_not_matter() -> None:
    logits, labels = some_logits(4)
    there = losses(logits, labels)
    back = losses(logits[::-1], labels)[::-1]
    for one, two in zip(there, back, strict=True):
        torch.testing.assert_close(one, two)


# ----------------------------------------------------------------------------- two models, weighted


def test_a_worked_example_with_weights() -> None:
    """Probabilities p = (1/2, 1/2) and q = (3/4, 1/4), label 1, weight 0.3:
    0.3 ln 2 + 0.7 (3/4 ln(3/2) + 1/4 ln(1/2)).
    """
    own, peer = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    expected = 0.3 * math.log(2) + 0.7 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert weighted_losses(own, peer, torch.tensor([1]), 0.3).item() == pytest.approx(expected)


def test_with_even_weights_two_models_minimise_half_of_deep_mutual_learning() -> None:
    (one, two), labels = some_logits(2)
    halves = [weighted_losses(*pair, labels, 0.5).mean() for pair in ((one, two), (two, one))]
    for half, whole in zip(halves, losses([one, two], labels), strict=True):
        torch.testing.assert_close(2 * half, whole)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_identical_models_have_cross_entropy_alone(weight: float) -> None:
    (logits, *_), labels = some_logits(1)
    expected = weight * torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(weighted_losses(logits, logits + 2, labels, weight), expected)


def test_no_gradient_reaches_the_peer() -> None:
    (own, peer), labels = some_logits(2)
    weighted_losses(own, peer, labels, 0.4).sum().backward()
    assert own.grad is not None
    assert peer.grad is None
