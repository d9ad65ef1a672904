from __future__ import annotations

import math

import pytest
import torch

from kdfed.losses import kd_loss


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
