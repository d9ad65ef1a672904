from __future__ import annotations

import math

import pytest
import torch

from kdfed.losses import kd_loss, peer_losses, weighted_losses

N, C = 5, 3


# ----------------------------------------------------------------------------- a fixed target


def slow_kd_loss(
    student: list[list[float]],
    target: list[list[float]],
    labels: list[int] | None,
    temperature: float,
    weight: float,
) -> float:
    """The equation, example by example and class by class."""

    def softmax(logits: list[float], t: float) -> list[float]:
        powers = [math.exp(value / t) for value in logits]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for n, logits in enumerate(student):
        soft = softmax(logits, temperature)
        divergence = sum(p * math.log(p / q) for p, q in zip(target[n], soft, strict=True) if p > 0)
        total += weight * temperature**2 * divergence
        if labels is not None:
            total -= (1 - weight) * math.log(softmax(logits, 1.0)[labels[n]])
    return total / len(student)


def test_a_worked_number_at_temperature_1() -> None:
    """Target (1, 0), student logits (ln 3, 0): softmax (3/4, 1/4), so KL = ln(4/3); CE of class 1 = ln 4.
    With w = 1/2: (ln 4 + ln(4/3)) / 2.
    """
    logits, target = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[1.0, 0.0]])
    assert kd_loss(logits, target, None, 1.0, 1.0).item() == pytest.approx(math.log(4 / 3))
    loss = kd_loss(logits, target, torch.tensor([1]), 1.0, 0.5)
    assert loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_worked_number_at_temperature_4_has_the_factor_16_with_and_without_labels(labelled: bool) -> None:
    """Student logits (4 ln 3, 0) at T = 4: softmax (3/4, 1/4); target (1, 0): KL = ln(4/3), times 16.
    With a label 0 and w = 1/4, CE = -ln(81/82): 3/4 ln(82/81) + 1/4 * 16 ln(4/3).
    """
    logits, target = torch.tensor([[4 * math.log(3), 0.0]]), torch.tensor([[1.0, 0.0]])
    labels = torch.tensor([0]) if labelled else None
    expected = 0.25 * 16 * math.log(4 / 3) + (0.75 * math.log(82 / 81) if labelled else 0.0)
    assert kd_loss(logits, target, labels, 4.0, 0.25).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_identical_logits_cost_nothing(temperature: float) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert kd_loss(logits, torch.softmax(logits / temperature, 1), None, temperature, 1.0).item() == (
        pytest.approx(0.0, abs=1e-5)
    )


def test_it_agrees_with_the_slow_twin() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(7, 4, generator=generator)
    target = torch.softmax(torch.randn(7, 4, generator=generator), 1)
    labels = torch.randint(4, (7,), generator=generator)
    for temperature, weight, used in [
        (1.0, 1.0, None),
        (4.0, 0.3, labels),
        (0.7, 0.0, labels),
        (3.0, 0.9, None),
    ]:
        fast = kd_loss(student, target, used, temperature, weight).item()
        listed = used.tolist() if used is not None else None
        slow = slow_kd_loss(student.tolist(), target.tolist(), listed, temperature, weight)
        assert fast == pytest.approx(slow, rel=1e-5)


def test_a_class_without_target_probability_costs_a_finite_amount() -> None:
    loss = kd_loss(torch.tensor([[0.0, 300.0]]), torch.tensor([[1.0, 0.0]]), None, 1.0, 1.0)
    assert loss.item() == pytest.approx(300.0)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    kd_loss(student, torch.softmax(teacher / 2, 1), torch.tensor([0, 1, 2]), 2.0, 0.5).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    """For large T the gradient by the student's logits tends to (s - t) / C for logits of mean 0, whatever T
    is (Hinton et al., section 2.1).
    """
    student = torch.tensor([[1.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[-0.5, 0.5]])
    for temperature in (200.0, 400.0):
        student.grad = None
        kd_loss(student, torch.softmax(teacher / temperature, 1), None, temperature, 1.0).backward()
        torch.testing.assert_close(student.grad, (student.detach() - teacher) / 2, rtol=1e-3, atol=0)


# ----------------------------------------------------------------------------- models that teach each other


def some_logits(models: int, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(N, C, generator=generator).requires_grad_() for _ in range(models)]
    return logits, torch.randint(C, (N,), generator=generator)


def slow_peer_losses(logits: list[torch.Tensor], labels: torch.Tensor | None) -> list[float]:
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
def test_losses_of_peers_agree_with_the_slow_twin(models: int, labelled: bool) -> None:
    logits, labels = some_logits(models)
    asked = labels if labelled else None
    assert [loss.item() for loss in peer_losses(logits, asked)] == pytest.approx(
        slow_peer_losses(logits, asked)
    )


def test_a_worked_example_of_peers() -> None:
    """Probabilities (1/2, 1/2) and (3/4, 1/4): KL(q || p) = 3/4 ln(3/2) + 1/4 ln(1/2), and so on."""
    one, two = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    first, second = peer_losses([one, two], torch.tensor([0]))
    assert first.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5) + math.log(2))
    assert second.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2) - math.log(0.75))


def test_models_that_agree_have_nothing_to_teach_each_other() -> None:
    (logits, *_), _ = some_logits(1)
    assert [loss.item() for loss in peer_losses([logits, logits + 3, logits - 1], None)] == pytest.approx(
        [0.0] * 3, abs=1e-6
    )


def test_no_gradient_flows_into_a_peer() -> None:
    logits, labels = some_logits(3)
    peer_losses(logits, labels)[1].backward()
    assert logits[0].grad is None
    assert logits[2].grad is None
    assert logits[1].grad is not None


def test_the_order_of_peers_does_not_matter() -> None:
    logits, labels = some_logits(4)
    there = peer_losses(logits, labels)
    back = peer_losses(logits[::-1], labels)[::-1]
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
    for half, whole in zip(halves, peer_losses([one, two], labels), strict=True):
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
