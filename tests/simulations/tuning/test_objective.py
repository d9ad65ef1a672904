"""Which candidate is better, on worked curves."""

from __future__ import annotations

import math

import pytest

from simulations.tuning.objective import Curve, kept, levels, ranked


def curve(*accuracies: float, teachers: int = 0) -> Curve:
    """Return a curve whose start cost so many exchanges."""
    return Curve(accuracies, tuple(range(teachers, teachers + len(accuracies))))


SLOW = curve(0.1, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8)
QUICK = curve(0.1, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7)
LUCKY = curve(0.1, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1)


def test_a_cost_is_the_exchanges_up_to_the_hit():
    """At 0.6, SLOW hits in round 3 (0.7, 0.8, 0.8); after a teacher exchange it is the fourth exchange."""
    assert SLOW.cost(0.6) == 3
    assert curve(*SLOW.accuracies, teachers=1).cost(0.6) == 4
    assert LUCKY.cost(0.6) == math.inf


def test_a_hit_at_the_start_costs_one_exchange():
    assert curve(0.9, 0.9, 0.9).cost(0.6) == 1


def test_the_level_of_a_seed_is_a_share_of_the_best_converged_accuracy_there():
    """SLOW converges to (0.3 + 0.5 + 0.7 + 3 * 0.8) / 6 = 0.65 and QUICK to 0.7: 95% of that is 0.665."""
    found = levels([{1: SLOW, 2: LUCKY}, {1: QUICK, 2: LUCKY}], (1, 2, 3), "95%-of-converged", 0.0)
    assert found == pytest.approx({1: 0.665, 2: 0.95 * (0.8 + 5 * 0.1) / 6})


def test_the_level_of_a_gain_begins_at_the_largest_class():
    assert levels([{1: QUICK}], (1,), "95%-of-gain", 0.5) == pytest.approx({1: 0.5 + 0.95 * 0.2})


def test_fewer_exchanges_rank_first_then_fewer_misses_then_the_higher_accuracy():
    """With two seeds, one miss makes the median infinite, as two do: fewer misses are better."""
    level = {1: 0.6, 2: 0.6}
    high_but_late = {1: SLOW, 2: SLOW}
    early = {1: QUICK, 2: QUICK}
    once = {1: QUICK, 2: LUCKY}
    never = {1: LUCKY, 2: LUCKY}
    never_but_higher = {1: curve(0.1, 0.5, 0.5, 0.5), 2: LUCKY}
    everybody = [never, once, high_but_late, never_but_higher, early]
    assert ranked(everybody, level, (1, 2)) == [4, 2, 1, 3, 0]


def test_ties_are_decided_by_the_converged_accuracy_then_by_the_order():
    better = curve(0.1, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9)
    assert ranked([{1: QUICK}, {1: better}, {1: QUICK}], {1: 0.6}, (1,)) == [1, 0, 2]


def test_a_candidate_that_failed_comes_last_even_behind_one_that_never_arrives():
    assert ranked([{1: QUICK}, {1: LUCKY, 2: LUCKY}], {1: 0.6, 2: 0.6}, (1, 2)) == [1, 0]


def test_a_share_goes_on_and_at_least_one_does():
    assert [kept(12, 0.34), kept(4, 0.34), kept(2, 0.1)] == [4, 1, 1]
