from __future__ import annotations

import math
import statistics
import sys

import pytest
from scipy import stats

from kdfed.errors import RunError
from kdfed.savings import PairedRuns, compare, mean_interval


def test_the_interval_of_three_savings_is_the_textbooks():
    """Savings 50, 60, 70: mean 60, s = 10, t(2) = 4.302653, half width 4.302653 * 10 / sqrt(3) = 24.8414."""
    mean, low, high = mean_interval([50, 60, 70])
    assert (mean, low, high) == pytest.approx((60, 35.1586, 84.8414), abs=1e-4)
    assert (low, high) == pytest.approx(
        stats.t.interval(0.95, 2, 60, statistics.stdev([50, 60, 70]) / 3**0.5)
    )


def test_one_value_gives_no_interval():
    assert mean_interval([7.0]) == (7.0, 7.0, 7.0)


def test_without_scipy_several_values_are_refused_and_one_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert compare([PairedRuns(10, 5, False)])["saved_percent"] == {"mean": 50, "low": 50, "high": 50}
    with pytest.raises(RunError, match=r"intervals over seeds need the package 'scipy': .*kdfed\[sim\]"):
        compare([PairedRuns(10, 5, False), PairedRuns(8, 2, False)])


def test_equal_savings_have_an_interval_of_no_width():
    assert mean_interval([4.0, 4.0, 4.0]) == (4.0, 4.0, 4.0)


def test_savings_and_ratios_are_paired():
    """5/10 and 2/8 save 50% and 75%, 62.5% on average; the geometric mean of 1/2 and 1/4 is sqrt(1/8)."""
    result = compare([PairedRuns(10, 5, False), PairedRuns(8, 2, False)])
    assert result["saved_percent"]["mean"] == pytest.approx(62.5)
    assert result["ratio"]["geometric_mean"] == pytest.approx(math.sqrt(1 / 8))
    logs = [math.log(1 / 2), math.log(1 / 4)]
    half = stats.t.ppf(0.975, 1) * statistics.stdev(logs) / math.sqrt(2)
    assert math.log(result["ratio"]["high"]) == pytest.approx(statistics.mean(logs) + half)
    assert result["pairs"] == 2


def test_a_baseline_compared_with_itself_saves_nothing():
    result = compare([PairedRuns(10, 10, False), PairedRuns(8, 8, False)])
    assert result["saved_percent"] == {"mean": 0, "low": 0, "high": 0}
    assert result["ratio"] == {"geometric_mean": 1, "low": 1, "high": 1}


def test_the_order_of_seeds_does_not_matter():
    pairs = [
        PairedRuns(10, 5, False),
        PairedRuns(8, 2, False),
        PairedRuns(None, 3, False),
        PairedRuns(9, 41, True),
    ]
    there, back = compare(pairs), compare(pairs[::-1])
    assert there["saved_percent"] == pytest.approx(back["saved_percent"])
    assert there["censored"] == back["censored"]


def test_misses_are_counted_by_kind_and_only_those_of_the_arm_stay_in_the_mean():
    pairs = [
        PairedRuns(10, 5, False),
        PairedRuns(10, 41, True),
        PairedRuns(None, 5, False),
        PairedRuns(None, 41, True),
    ]
    result = compare(pairs)
    assert result["censored"] == {"baseline": 1, "arm": 1, "both": 1}
    assert result["pairs"] == 2
    assert result["saved_percent"]["mean"] == pytest.approx((50 - 310) / 2)


def test_a_cost_of_nothing_has_no_ratio():
    arm_free = compare([PairedRuns(10, 0, False)])
    assert arm_free["saved_percent"]["mean"] == 100
    assert arm_free["ratio"] is None
    baseline_free = compare([PairedRuns(0, 1, False), PairedRuns(4, 2, False)])
    assert baseline_free["saved_percent"] is None
    assert baseline_free["ratio"] is None
    assert baseline_free["pairs"] == 2


def test_nothing_to_compare_is_no_number():
    result = compare([])
    assert (result["saved_percent"], result["ratio"], result["pairs"]) == (None, None, 0)
