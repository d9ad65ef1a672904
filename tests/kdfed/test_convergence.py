from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfed.convergence import CONVERGENCE, converged, first_hit, hit, plateau, resolve_target

STEPS = st.lists(st.integers(0, 20), min_size=1, max_size=60)
"""Curves in twentieths: whole numbers, in which a twin counts without rounding."""
TARGETS = st.integers(1, 20)


def in_twentieths(steps: list[int]) -> list[float]:
    return [step / 20 for step in steps]


# ----------------------------------------------------------------------------- hits


def test_a_target_can_be_reached_in_zero_rounds():
    assert first_hit([0.9], 0.9) == 0
    assert hit([0.9, 0.9, 0.9], 0.9) == 0


def test_one_lucky_evaluation_is_a_first_hit_but_no_hit():
    """At target 0.8: 0.9 alone is reached in round 1; the mean with the next two is 0.733. From round 3 on
    accuracy and mean (0.867) are at it."""
    curve = [0.1, 0.9, 0.5, 0.8, 1.0, 0.8]
    assert first_hit(curve, 0.8) == 1
    assert hit(curve, 0.8) == 3


@pytest.mark.parametrize(
    ("curve", "billed_before", "billed"),
    [
        ([0.1, 0.65, 0.9, 0.9, 0.9], 1, 2),  # the mean from round 1 on is 0.817, the model of round 1 at 0.65
        ([0.1, 0.4, 1.0, 1.0, 1.0], 1, 2),  # 0.8 at once, from a model at 0.4
        ([0.1, 0.7, 0.9, 0.85, 0.6, 0.9, 0.9, 0.9], 1, 5),  # round 2 reaches it, its mean 0.783 does not
        ([0.7, 0.85, 0.85, 0.2, 0.2], 0, None),  # never two evaluations more at it
    ],
)
def test_no_round_is_billed_whose_model_is_below_the_target(curve, billed_before, billed):
    """Target 0.8. The first version billed the first round from which the mean of three reached it, whatever
    the model of that round was worth."""
    means = [sum(curve[r : r + 3]) / 3 for r in range(len(curve) - 2)]
    assert next(r for r, mean in enumerate(means) if mean >= 0.8 - 1e-9) == billed_before
    assert curve[billed_before] < 0.8
    assert hit(curve, 0.8) == billed


def test_a_hit_needs_the_next_two_evaluations():
    assert hit([0.1, 0.95, 0.95], 0.9) is None
    assert hit([0.1, 0.95, 0.95, 0.95], 0.9) == 1
    assert first_hit([0.1, 0.95, 0.95], 0.9) == 1


def test_a_target_never_reached_is_no_hit():
    assert first_hit([0.1, 0.2], 0.9) is None
    assert first_hit([], 0.9) is None
    assert hit([], 0.9) is None
    assert hit([0.1] * 9, 0.9) is None


def test_rounding_costs_no_hit():
    """0.95 * 0.96 is 0.9119999999999999 or 0.912, and 456 of 500 right is the same accuracy."""
    assert first_hit([456 / 500], resolve_target("95%-of-converged", 0.96)) == 0
    assert hit([0.1 + 0.2] * 3, 0.3) == hit([0.3] * 3, 0.1 + 0.2) == 0


@given(STEPS, TARGETS)
def test_hits_agree_with_a_plain_search(steps, target):
    curve = in_twentieths(steps)
    reached = [r for r, step in enumerate(steps) if step >= target]
    assert first_hit(curve, target / 20) == (reached[0] if reached else None)
    lasting = [r for r in reached if r + 2 < len(steps) and sum(steps[r : r + 3]) >= 3 * target]
    assert hit(curve, target / 20) == (lasting[0] if lasting else None)


@given(STEPS, TARGETS)
def test_the_billed_accuracy_is_at_the_target(steps, target):
    found = hit(in_twentieths(steps), target / 20)
    assert found is None or steps[found] >= target


@given(STEPS, TARGETS)
def test_a_higher_target_is_never_reached_earlier(steps, target):
    low, high = (hit(in_twentieths(steps), part) for part in (target / 40, target / 20))
    assert high is None or (low is not None and low <= high)


@given(STEPS, TARGETS, st.lists(st.integers(0, 20), max_size=9))
def test_more_rounds_do_not_move_a_hit(steps, target, more):
    found = hit(in_twentieths(steps), target / 20)
    assert found is None or hit(in_twentieths(steps + more), target / 20) == found


# ----------------------------------------------------------------------------- converged


def test_a_curve_converges_to_the_mean_of_its_last_ten_evaluations():
    """The last ten are 0.5 (five times) and 0.7 (five times); a best of 0.9 before them counts nothing."""
    assert converged([0.1, 0.9, *[0.5] * 5, *[0.7] * 5]) == pytest.approx(0.6)


def test_the_start_is_no_part_of_what_a_short_curve_converges_to():
    assert converged([0.1, 0.5, 0.7]) == pytest.approx(0.6)
    assert converged([0.1, *[0.8] * 10]) == pytest.approx(0.8)


def test_a_start_without_rounds_converges_to_itself():
    assert converged([0.3]) == 0.3


@given(STEPS)
def test_what_a_curve_converges_to_lies_among_its_evaluations(steps):
    curve = in_twentieths(steps)
    assert min(curve) - 1e-12 <= converged(curve) <= max(curve) + 1e-12


# ----------------------------------------------------------------------------- plateau


def slow_plateau(curve: list[float], rounds: int, rise: float) -> int | None:
    """Say the rule as it is written, with every mean taken anew."""

    def best(r: int) -> float:
        return max(sum(curve[end - 4 : end + 1]) / 5 for end in range(4, r + 1))

    for r in range(len(curve)):
        before = r - max(rounds, r // 2)
        if before >= 4 and best(r) - best(before) <= rise + 1e-9:
            return r
    return None


def test_a_curve_is_flat_when_its_best_mean_of_five_rose_no_more():
    """Rounds 0 to 4 rise, all later ones are 0.8. The first mean of five that is 0.8 ends at round 9, so with
    a window of 3 nothing has risen at round 12; half of 12 is 6, and best(6) is less: from round 9 to the end
    of a window of r // 2, 9 <= r - r // 2, r is 17."""
    curve = [0.0, 0.2, 0.4, 0.6, 0.7, *[0.8] * 20]
    assert plateau(curve, rounds=3, min_delta=0.0) == 17
    assert plateau(curve, rounds=12, min_delta=0.0) == 21
    assert plateau(curve[:17], rounds=3, min_delta=0.0) is None


def test_one_lucky_evaluation_does_not_keep_a_curve_from_being_flat():
    """0.82 once at 0.8 lifts a mean of five by 0.004, and 0.84 by 0.008."""
    flat = [0.8] * 20
    assert plateau([*flat, 0.82, *[0.8] * 4], rounds=20, min_delta=0.005) == 24
    assert plateau([*flat, 0.84, *[0.8] * 4], rounds=20, min_delta=0.005) is None
    assert plateau([*flat, *[0.82] * 5], rounds=20, min_delta=0.005) is None
    assert plateau([*flat, *[0.82] * 5], rounds=20, min_delta=0.02) == 24


def test_a_plateau_needs_the_last_half_of_a_long_curve():
    """0.1 points a round is less than 0.5 points in any 4 rounds, and more in the last half from round 11
    on: a slow rise that goes on is no plateau."""
    slow = [0.5 + 0.001 * r for r in range(300)]
    assert plateau(slow, rounds=20, min_delta=0.005) is None
    steady = [0.5 + 0.0001 * r for r in range(300)]
    assert plateau(steady, rounds=20, min_delta=0.005) == 24


def test_no_curve_is_flat_before_there_is_a_mean_to_compare_with():
    assert plateau([0.8] * 24, rounds=20) is None
    assert plateau([0.8] * 25, rounds=20) == 24
    assert plateau([], rounds=1) is None


@given(STEPS, st.integers(1, 25), st.sampled_from([0.0, 0.005, 0.05]))
def test_a_plateau_agrees_with_its_definition(steps, rounds, rise):
    curve = in_twentieths(steps)
    assert plateau(curve, rounds, rise) == slow_plateau(curve, rounds, rise)


@given(STEPS, st.integers(1, 25))
def test_a_smaller_tolerance_finds_no_earlier_plateau(steps, rounds):
    half, whole = (plateau(in_twentieths(steps), rounds, rise) for rise in (0.01, 0.02))
    assert half is None or (whole is not None and whole <= half)


# ----------------------------------------------------------------------------- targets


def test_a_share_is_taken_of_what_the_baseline_converges_to():
    assert resolve_target("95%-of-converged", 0.8) == pytest.approx(0.76)
    assert resolve_target("99.5%-of-converged", 1.0) == pytest.approx(0.995)
    assert resolve_target(CONVERGENCE, 0.9) == pytest.approx(0.891)


def test_a_share_of_the_gain_is_counted_from_the_majority_class():
    """Nine of ten examples are of one class, and the baseline converges to 0.94: its gain is 0.04, of which
    95% are 0.038. The same share of 0.94 would be 0.893, which naming that class always beats."""
    assert resolve_target("95%-of-gain", 0.94, majority=0.9) == pytest.approx(0.938)
    assert resolve_target("95%-of-converged", 0.94, majority=0.9) == pytest.approx(0.893)
    assert resolve_target("95%-of-gain", 0.4) == pytest.approx(0.38)
    assert resolve_target("100%-of-gain", 0.94, majority=0.9) == pytest.approx(0.94)


def test_an_absolute_target_needs_no_baseline():
    assert resolve_target(0.9, math.nan) == 0.9


def test_nobody_reaches_a_share_of_what_is_not_above_nothing():
    """R² can be negative, and 90% of it is then above it; so can a gain."""
    for what in (0.0, -0.15):
        assert resolve_target("90%-of-converged", what) > 1
        assert resolve_target("90%-of-gain", 0.9 + what, majority=0.9) > 1
    assert resolve_target("90%-of-converged", 0.5) == pytest.approx(0.45)
