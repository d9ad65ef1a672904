from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfed.convergence import first_hit, plateau, resolve_target, sustained_hit

CURVES = st.lists(st.integers(0, 20).map(lambda k: k / 20), min_size=1, max_size=30)


def test_a_target_can_be_reached_in_zero_rounds():
    assert first_hit([0.9], 0.9) == 0
    assert sustained_hit([0.9, 0.9, 0.9], 0.9) == 0


def test_one_lucky_evaluation_is_a_first_hit_but_not_a_sustained_one():
    """At target 0.8: 0.9 alone hits in round 1; means of three are 0.5, 0.733, 0.767, 0.867."""
    curve = [0.1, 0.9, 0.5, 0.8, 1.0, 0.8]
    assert first_hit(curve, 0.8) == 1
    assert sustained_hit(curve, 0.8) == 3


def test_a_sustained_hit_needs_all_three_evaluations():
    assert sustained_hit([0.1, 0.95, 0.95], 0.9) is None
    assert sustained_hit([0.1, 0.95, 0.95, 0.95], 0.9) == 1


def test_a_target_never_reached_is_no_hit():
    assert first_hit([0.1, 0.2], 0.9) is None
    assert first_hit([], 0.9) is None


def test_rounding_costs_no_hit():
    """0.95 * 0.96 is 0.9119999999999999 or 0.912, and 456 of 500 right is the same accuracy."""
    assert first_hit([456 / 500], resolve_target("95%-of-converged", 0.96)) == 0
    assert sustained_hit([0.1 + 0.2] * 3, 0.3) == sustained_hit([0.3] * 3, 0.1 + 0.2) == 0


@given(CURVES, st.integers(1, 20).map(lambda k: k / 20))
def test_hits_agree_with_a_plain_search(curve, target):
    plain = [r for r in range(len(curve)) if curve[r] >= target]
    assert first_hit(curve, target) == (plain[0] if plain else None)
    means = [
        r for r in range(len(curve) - 2) if sum(round(20 * a) for a in curve[r : r + 3]) >= round(60 * target)
    ]
    assert sustained_hit(curve, target) == (means[0] if means else None)


@given(CURVES, st.integers(1, 20).map(lambda k: k / 20))
def test_a_higher_target_is_never_reached_earlier(curve, target):
    low, high = (sustained_hit(curve, t) for t in (target / 2, target))
    assert high is None or (low is not None and low <= high)


def test_a_plateau_begins_where_the_best_stops_rising():
    """Best so far: 0.1 0.5 0.7 0.7 0.7 0.705. From round 2 it rises by 0 in two rounds, from 1 by 0.2."""
    curve = [0.1, 0.5, 0.7, 0.69, 0.7, 0.705]
    assert plateau(curve, rounds=2, min_delta=0.01) == 2
    assert plateau(curve, rounds=3, min_delta=0.01) == 2
    assert plateau(curve, rounds=3, min_delta=0.004) is None
    assert plateau(curve[:4], rounds=2, min_delta=0.01) is None


@given(CURVES, st.integers(1, 4))
def test_a_plateau_agrees_with_its_definition(curve, rounds):
    flat = [
        r
        for r in range(len(curve) - rounds)
        if all(later <= max(curve[: r + 1]) for later in curve[r + 1 : r + rounds + 1])
    ]
    assert plateau(curve, rounds, 0.0) == (flat[0] if flat else None)


def test_a_share_of_the_best_is_taken_of_the_baselines_best():
    assert resolve_target("95%-of-converged", 0.8) == pytest.approx(0.76)
    assert resolve_target("99.5%-of-converged", 1.0) == pytest.approx(0.995)


def test_an_absolute_target_needs_no_baseline():
    assert resolve_target(0.9, math.nan) == 0.9


def test_nobody_reaches_a_share_of_a_best_that_is_not_above_nothing():
    """R² can be negative, and 90% of it is then above it."""
    for best in (0.0, -0.15):
        assert resolve_target("90%-of-converged", best) > 1
    assert resolve_target("90%-of-converged", 0.5) == pytest.approx(0.45)
