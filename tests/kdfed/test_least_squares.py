from __future__ import annotations

import numpy as np
import pytest
import torch

from kdfed.least_squares import LeastSquares


def some_system(count: int, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, dims, generator=generator, dtype=torch.float64) + 3
    slope = torch.randn(dims, 2, generator=generator, dtype=torch.float64)
    return features, features @ slope + torch.randn(count, 2, generator=generator, dtype=torch.float64)


def by_sums(features: torch.Tensor, wanted: torch.Tensor) -> LeastSquares:
    mean, answer = features.mean(0), wanted.mean(0)
    x, y = features - mean, wanted - answer
    return LeastSquares.from_sums(len(x), mean, answer, x.T @ x, y.T @ x, float(y.square().sum()))


@pytest.mark.parametrize(("count", "dims"), [(30, 5), (5, 30), (6, 5), (1, 3)])
def test_sums_and_examples_make_the_same_equations(count: int, dims: int) -> None:
    features, wanted = some_system(count, dims)
    one, two = by_sums(features, wanted), LeastSquares.from_examples(features, wanted)
    assert len(one.values_E) == len(two.values_E) == min(count - 1, dims)
    for penalty in (0.01, 1.0, 100.0):
        for mine, theirs in zip(one.solution(penalty), two.solution(penalty), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
        assert one.fitted(penalty) == pytest.approx(two.fitted(penalty), rel=1e-9)
        assert one.left_out(penalty) == pytest.approx(two.left_out(penalty), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("count", "dims"), [(30, 5), (5, 30)])
def test_the_solution_is_that_of_the_augmented_matrix(count: int, dims: int) -> None:
    features, wanted = some_system(count, dims)
    design = np.block([[features.numpy(), np.ones((count, 1))], [2 * np.eye(dims), np.zeros((dims, 1))]])
    found = np.linalg.lstsq(design, np.vstack([wanted.numpy(), np.zeros((dims, 2))]), rcond=None)[0]
    weight, bias = LeastSquares.from_examples(features, wanted).solution(4.0)
    np.testing.assert_allclose(weight, found[:dims].T, atol=1e-9)
    np.testing.assert_allclose(bias, found[dims], atol=1e-9)


def test_the_penalties_are_quarter_powers_of_ten_on_both_sides_of_the_eigenvalues() -> None:
    squares = by_sums(*some_system(30, 5))
    penalties = squares.penalties()
    assert penalties == sorted(penalties)
    assert penalties[0] < 1e-7 * squares.values_E.mean() < squares.values_E.max() < penalties[-1]
    assert 1.0 in penalties
    noise = float(squares.values_E.mean())
    assert squares.penalties(noise)[0] >= noise
    assert squares.penalties(1e30)[0] >= 1e30
    assert penalties[-1:] == squares.penalties(noise)[-1:]


def test_features_without_extent_leave_one_penalty_and_no_weight() -> None:
    squares = by_sums(torch.full((4, 3), 2.0, dtype=torch.float64), some_system(4, 3)[1])
    assert squares.penalties() == [1.0]
    assert squares.solution(squares.least_left_out())[0].abs().max() == 0


def test_the_chosen_penalty_has_the_least_error_left_out() -> None:
    squares = by_sums(*some_system(30, 20))
    chosen = squares.least_left_out()
    assert squares.left_out(chosen) == min(squares.left_out(one) for one in squares.penalties())
    assert squares.penalties()[0] < chosen < squares.penalties()[-1]


def test_what_is_explained_is_near_what_examples_that_were_left_out_say() -> None:
    """The slow twin leaves each example out in turn; generalised means that leverages are averaged."""
    features, wanted = some_system(60, 4)
    squares = by_sums(features, wanted)
    missed = 0.0
    for one in range(60):
        rest = [number for number in range(60) if number != one]
        weight, bias = by_sums(features[rest], wanted[rest]).solution(2.0)
        missed += float((features[one] @ weight.T + bias - wanted[one]).square().sum())
    away = float((wanted - wanted.mean(0)).square().sum())
    assert squares.explained(2.0) == pytest.approx(1 - missed / away, abs=0.02)
    assert 0.4 < squares.explained(2.0) < 1


def test_features_that_say_nothing_explain_nothing() -> None:
    features, wanted = some_system(200, 30)
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    squares = by_sums(features, other)
    assert squares.explained(squares.least_left_out()) < 0.05
    assert by_sums(features, torch.zeros_like(wanted)).explained(1.0) == 0.0
