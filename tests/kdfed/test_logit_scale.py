from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from kdfed.errors import KdfedError
from kdfed.logit_scale import best_scale


def some_logits(count: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return functional.one_hot(labels, 3) + noise, labels


def test_worked_scale() -> None:
    """Two classes, logits (1, 0), of 3 examples two are of class 0. Doubt is a uniform label of weight 1/4,
    so class 0 has the share 3/4 2/3 + 1/4 1/2 = 5/8, which is its probability at s = log(5/3).
    """
    logits = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    assert best_scale(logits, torch.tensor([0, 0, 1])) == pytest.approx(math.log(5 / 3), rel=1e-5)


def test_the_scale_is_where_an_optimiser_of_scipy_finds_it() -> None:
    logits, labels = some_logits()

    def doubted(factor: float) -> float:
        uniform = -torch.log_softmax(factor * logits, 1).mean()
        return 80 / 81 * float(functional.cross_entropy(factor * logits, labels)) + float(uniform) / 81

    found = minimize_scalar(doubted, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-8})
    assert best_scale(logits, labels) == pytest.approx(found.x, rel=1e-3)


def test_a_scale_of_the_logits_is_taken_back_and_a_number_added_to_all_does_not_matter() -> None:
    logits, labels = some_logits()
    once = best_scale(logits, labels)
    for factor in (1e-12, 1e12):
        assert best_scale(factor * logits, labels) * factor == pytest.approx(once, rel=1e-5)
    assert best_scale(logits + 1000, labels) == pytest.approx(once, rel=1e-5)


def test_the_scale_stays_finite_where_every_example_is_right() -> None:
    """Two examples: the right class has the share 2/3 + 1/3 1/2 = 5/6, so s = log 5."""
    assert best_scale(torch.eye(2).double(), torch.tensor([0, 1])) == pytest.approx(math.log(5), rel=1e-5)


def test_flat_logits_stay_as_they_are_and_wrong_ones_become_flat() -> None:
    assert best_scale(torch.full((4, 3), 2.0, dtype=torch.float64), torch.arange(4) % 3) == 1.0
    assert best_scale(torch.eye(2).double(), torch.tensor([1, 0])) < 0.01


def test_nothing_to_calibrate_with_is_refused() -> None:
    logits, labels = some_logits()
    with pytest.raises(KdfedError, match="finite logits of at least one example, got 0"):
        best_scale(logits[:0], labels[:0])
    with pytest.raises(KdfedError, match="expected finite logits"):
        best_scale(logits * math.nan, labels)
