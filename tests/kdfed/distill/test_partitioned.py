from __future__ import annotations

import pytest
import torch

from kdfed.distill.partitioned import assign, target

K, N, C = 3, 40, 4


def some_logits(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teachers = 3 * torch.randn(K, N, C, generator=generator)
    return (
        teachers,
        3 * torch.randn(N, C, generator=generator),
        torch.randint(C, (N,), generator=generator),
    )


def slow_assign(teachers: torch.Tensor, student: torch.Tensor, labels: torch.Tensor | None) -> list[int]:
    """The rule, example by example."""
    chosen = []
    for n in range(len(student)):
        sure = []
        for logits in [*teachers[:, n], student[n]]:
            weights = [float(torch.exp(value)) for value in logits]
            share = [weight / sum(weights) for weight in weights]
            sure.append(max(share) if labels is None else share[int(labels[n])])
        chosen.append(sure.index(max(sure)))
    return chosen


@pytest.mark.parametrize("labelled", [False, True])
def test_each_example_goes_to_whoever_is_surest(labelled: bool) -> None:
    teachers, student, labels = some_logits(0)
    asked = labels if labelled else None
    chosen = slow_assign(teachers, student, asked)
    assert assign(teachers, student, asked).tolist() == chosen
    assert set(chosen) == {0, 1, 2, 3}
    every = [*teachers, student]
    expected = [torch.softmax(every[model][n] / 2.5, 0) for n, model in enumerate(chosen)]
    torch.testing.assert_close(target(teachers, student, asked, 2.5), torch.stack(expected))


def test_a_worked_example() -> None:
    """One teacher, two classes: it is sure of the first example, the student of the second."""
    teacher, student = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    expected = torch.tensor([[0.7311, 0.2689], [0.1824, 0.8176]])  # logits 2, 0 and 0, 3 at temperature 2
    torch.testing.assert_close(target(teacher, student, None, 2.0), expected, rtol=0, atol=1e-4)


def test_among_equals_the_first_teacher_wins_and_the_student_comes_last() -> None:
    same = torch.tensor([[1.0, 0.0]])
    assert assign(torch.stack([same, same]), same, None).tolist() == [0]
    assert assign(torch.stack([0 * same, same]), same, None).tolist() == [1]


def test_labels_send_an_example_to_whoever_knows_it_not_to_whoever_is_loud() -> None:
    loud_and_wrong, quiet_and_right = torch.tensor([[[9.0, 0.0]]]), torch.tensor([[0.0, 1.0]])
    assert assign(loud_and_wrong, quiet_and_right, None).tolist() == [0]
    assert assign(loud_and_wrong, quiet_and_right, torch.tensor([1])).tolist() == [1]


def test_the_order_of_teachers_does_not_matter_and_logits_may_be_shifted() -> None:
    teachers, student, labels = some_logits(1)
    for asked in (None, labels):
        expected = target(teachers, student, asked, 3.0)
        torch.testing.assert_close(target(teachers.flip(0), student, asked, 3.0), expected)
        torch.testing.assert_close(target(teachers + 5, student - 2, asked, 3.0), expected)
