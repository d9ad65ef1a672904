from __future__ import annotations

import math
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdfed.errors import RunError
from kdfed.savings import (
    NOTHING,
    Comparison,
    Interval,
    Pair,
    compare,
    holm,
    mean_interval,
    median_interval,
    sign_test,
    upper_bound,
    verdict,
)

SIZES = range(6, 31)
COSTS = st.none() | st.integers(1, 40)
PAIRS = st.lists(st.builds(Pair, COSTS, COSTS), max_size=14)


def pairs_of(*costs: tuple[float | None, float | None]) -> list[Pair]:
    return [Pair(*both) for both in costs]


# ----------------------------------------------------------------------------- pairs


def test_a_miss_of_one_side_is_an_infinity_of_its_sign():
    assert Pair(10, 5).log_ratio == pytest.approx(math.log(0.5))
    assert Pair(10, None).log_ratio == math.inf
    assert Pair(None, 5).log_ratio == -math.inf


def test_nobody_knows_the_sign_of_two_misses():
    assert Pair(None, None).both_missed
    assert not Pair(None, 3).both_missed
    with pytest.raises(ValueError, match="expected a pair in which somebody reached the target"):
        _ = Pair(None, None).log_ratio


# ----------------------------------------------------------------------------- the interval of the median


def ranks(n: int) -> tuple[int, int]:
    """Return which of n sorted numbers are the ends of the interval, counted from 1."""
    found = median_interval([float(i) for i in range(1, n + 1)])
    assert found.low is not None
    assert found.high is not None
    return int(found.low), int(found.high)


@pytest.mark.parametrize("n", SIZES)
def test_the_interval_covers_the_median_and_the_next_narrower_one_does_not(n):
    """The k-th smallest of n lies above the median if fewer than k are below it: P(Bin(n, 1/2) < k)."""

    def coverage(k: int) -> float:
        return float(1 - 2 * stats.binom.cdf(k - 1, n, 0.5))

    low, high = ranks(n)
    assert low + high == n + 1
    assert coverage(low) >= 0.95
    assert low + 1 > n // 2 or coverage(low + 1) < 0.95


def test_ten_seeds_give_the_second_to_the_ninth():
    """1 - 2 (1 + 10) / 1024 = 97.9%; from the third to the eighth it would be 89.1%."""
    assert ranks(10) == (2, 9)
    assert 1 - 2 * stats.binom.cdf(1, 10, 0.5) == pytest.approx(0.979, abs=5e-4)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_fewer_than_six_seeds_are_a_point(n):
    """The smallest to the largest of five covers 1 - 2 / 32 = 93.75%."""
    found = compare([Pair(10, 5)] * n)
    assert found.saved == Interval(50.0, None, None)
    assert found.mean == (pytest.approx(0.5), None, None)
    assert (found.p_value, found.upper) == (None, None)


def test_pairs_in_which_both_missed_count_among_the_six():
    found = compare([Pair(10, 5)] * 5 + [Pair(None, None)])
    assert found.saved == Interval(pytest.approx(50.0), -math.inf, pytest.approx(100.0))
    assert compare([Pair(10, 5)] * 4 + [Pair(None, None)]).saved == Interval(pytest.approx(50.0), None, None)


def test_both_missed_widens_both_ends_and_leaves_the_median():
    """Ten seeds of which one is unknown: with it below all others the ends are -inf, -9, ..., with it above
    all others ..., -1, +inf, so the 2nd smallest is -9 and the 9th -1; a second one makes both infinite."""
    logs = [float(-i) for i in range(1, 10)]
    assert median_interval(logs, unknown=1) == Interval(-5.0, -9.0, -1.0)
    assert median_interval(logs[:8], unknown=2) == Interval(-4.5, -math.inf, math.inf)
    assert median_interval([*logs, -10.0]) == Interval(-5.5, -9.0, -2.0)


def test_a_miss_of_one_side_takes_its_place_in_the_order():
    """Cold missed twice, warm once, of ten: sorted -inf, -inf, six of log 1/2, log 1, +inf."""
    pairs = pairs_of((None, 5), (None, 9), *[(10, 5)] * 6, (10, 10), (10, None))
    found = compare(pairs)
    assert found.saved == Interval(pytest.approx(50.0), pytest.approx(0.0), 100.0)
    assert found.mean is None


def test_what_the_arm_never_reaches_is_no_saving():
    found = compare([Pair(10, None)] * 6)
    assert found.saved == Interval(-math.inf, -math.inf, -math.inf)
    assert (found.mean, found.upper) == (None, math.inf)


def test_what_the_arm_alone_reaches_saves_all_and_never_more():
    assert compare([Pair(None, 3)] * 6).saved == Interval(100.0, 100.0, 100.0)


def test_a_median_beside_a_miss_is_the_larger_ratio():
    assert compare(pairs_of((None, 3), (10, None))).saved == Interval(-math.inf, None, None)
    assert compare(pairs_of((None, 3), (10, 5))).saved == Interval(50.0, None, None)


@given(PAIRS)
def test_nobody_saves_more_than_all(pairs):
    saved = compare(pairs).saved
    ends = [] if saved is None else [saved.low, saved.median, saved.high]
    known = [end for end in ends if end is not None]
    assert known == sorted(known)
    assert all(end <= 100 for end in known)


@given(PAIRS, st.randoms())
def test_the_order_of_seeds_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    assert compare(pairs) == compare(shuffled)


@given(st.lists(st.integers(1, 40), min_size=6, max_size=14))
def test_an_arm_that_misses_more_looks_no_better(costs):
    """A miss in the place of a hit lifts no end: the first version let some misses look like savings."""
    hits = compare([Pair(20, cost) for cost in costs]).saved
    missed = compare([Pair(20, cost) for cost in costs[1:]] + [Pair(20, None)]).saved
    assert hits is not None
    assert missed is not None
    assert (missed.low, missed.median, missed.high) <= (hits.low, hits.median, hits.high)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=6, max_size=14))
def test_the_other_way_round_the_interval_is_turned_over(costs):
    there, back = (
        median_interval([Pair(*costs_).log_ratio for costs_ in side])
        for side in (costs, [(arm, baseline) for baseline, arm in costs])
    )
    assert back.low is not None
    assert (there.median, there.high) == (pytest.approx(-back.median), pytest.approx(-back.low))


# ----------------------------------------------------------------------------- worked numbers


def test_savings_are_the_median_of_paired_ratios():
    """Ratios 0.5, 0.25 and 0.8: half of what cold pays. The means of savings, 48.3%, say nothing here."""
    found = compare(pairs_of((10, 5), (8, 2), (10, 8)))
    assert found.saved == Interval(pytest.approx(50.0), None, None)
    assert found.mean == (pytest.approx((0.5 * 0.25 * 0.8) ** (1 / 3)), None, None)


def test_an_even_number_of_seeds_takes_the_geometric_middle():
    """Between ratios 1/2 and 1/8 lies 1/4."""
    found = compare(pairs_of((8, 4), (8, 1)))
    assert found.saved == Interval(pytest.approx(75.0), None, None)


def test_a_baseline_compared_with_itself_saves_nothing():
    found = compare(pairs_of(*[(10, 10), (8, 8)] * 3))
    assert found.saved == Interval(0.0, 0.0, 0.0)
    assert found.mean == pytest.approx((1, 1, 1))
    assert (found.p_value, found.upper) == (1.0, 1.0)


def test_six_seeds_have_the_geometric_mean_with_the_textbooks_interval():
    """Of the logarithms: mean +- t(5) s / sqrt(6), t(5) = 2.570582."""
    arms = [2, 3, 4, 5, 6, 8]
    logs = [math.log(arm / 10) for arm in arms]
    half = 2.570582 * statistics.stdev(logs) / math.sqrt(6)
    found = compare([Pair(10, arm) for arm in arms])
    middle = statistics.mean(logs)
    assert found.mean == pytest.approx(
        (math.exp(middle), math.exp(middle - half), math.exp(middle + half)), rel=1e-6
    )
    assert mean_interval(logs)[1:] == pytest.approx(
        stats.t.interval(0.95, 5, middle, statistics.stdev(logs) / math.sqrt(6))
    )
    assert found.saved == Interval(
        pytest.approx(100 * (1 - math.sqrt(0.2))), pytest.approx(20.0), pytest.approx(80.0)
    )


@pytest.mark.parametrize("missed", [(None, 3), (10, None), (None, None)])
def test_where_anything_is_censored_there_is_no_geometric_mean(missed):
    assert compare([Pair(10, 5)] * 7).mean is not None
    assert compare([*[Pair(10, 5)] * 7, Pair(*missed)]).mean is None


def test_nothing_to_compare_is_no_number():
    assert compare([]) == NOTHING
    assert compare([Pair(None, None)] * 5) == NOTHING
    assert compare([Pair(None, None)] * 9) == Comparison(None, None, 1.0, None)
    assert verdict(compare([Pair(None, None)] * 9), False, 0.0) == "undecided"
    assert Comparison(None, None, None, None) == NOTHING


def test_a_cost_of_nothing_is_a_point_without_an_interval():
    free = compare([*[Pair(10, 5)] * 5, Pair(10, 0), Pair(10, 0)])
    assert free == Comparison(Interval(pytest.approx(50.0), None, None), None, None, None)
    assert compare([Pair(10, 0)] * 8).saved == Interval(100.0, None, None)


def test_a_miss_beside_a_cost_of_nothing_stays_a_miss():
    """Two of three seeds never got there: a median over the third alone would say that all was saved."""
    assert compare(pairs_of((10, 0), (10, None), (10, None))).saved == Interval(-math.inf, None, None)
    assert compare(pairs_of((10, 0), (None, 4), (10, 5))).saved == Interval(100.0, None, None)


def test_nothing_can_be_saved_of_nothing():
    assert compare(pairs_of((0, 1), (4, 2))) == NOTHING


def test_without_scipy_points_are_given_and_intervals_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert compare([Pair(10, 5)] * 5).saved == Interval(50.0, None, None)
    with pytest.raises(RunError, match=r"intervals over seeds need the package 'scipy': .*kdfed\[sim\]"):
        compare([Pair(10, 5)] * 6)


# ----------------------------------------------------------------------------- tests of hypotheses


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 4))
def test_the_sign_test_is_the_textbooks(less, more, equal):
    logs = [-1.0] * less + [1.0] * more + [0.0] * equal
    found = sign_test(logs)
    if len(logs) < 6:
        assert found is None
    elif less + more == 0:
        assert found == 1.0
    else:
        assert found == pytest.approx(float(stats.binomtest(less, less + more).pvalue))


def test_misses_of_one_side_have_a_sign():
    assert sign_test([-math.inf] * 9 + [1.0]) == pytest.approx(float(stats.binomtest(1, 10).pvalue))


def test_two_misses_count_against_what_the_others_say():
    """Nine of nine save: 2 / 512. A tenth that nobody knows is taken for one that does not: 2 * 11 / 1024."""
    assert sign_test([-1.0] * 9) == pytest.approx(2 / 512)
    assert sign_test([-1.0] * 9, unknown=1) == pytest.approx(22 / 1024)
    assert sign_test([1.0] * 9, unknown=1) == pytest.approx(22 / 1024)
    assert sign_test([-1.0] * 3, unknown=3) == 1.0


@pytest.mark.parametrize("n", SIZES)
def test_the_one_sided_bound_covers_the_median(n):
    """The (n + 1 - k)-th smallest lies below the median with probability P(Bin(n, 1/2) < k) <= 5%."""
    found = upper_bound([math.log(i) for i in range(1, n + 1)])
    assert found is not None
    k = n + 1 - round(found)
    assert stats.binom.cdf(k - 1, n, 0.5) <= 0.05
    assert k == n // 2 or stats.binom.cdf(k, n, 0.5) > 0.05


def test_the_one_sided_bound_of_ten_seeds_is_the_ninth_and_a_miss_makes_it_infinite():
    """P(Bin(10, 1/2) < 2) = 1.07%, < 3: 5.47%."""
    logs = [math.log(i) for i in range(1, 11)]
    assert upper_bound(logs) == pytest.approx(9)
    assert upper_bound(logs[:8], unknown=1) == pytest.approx(8)
    assert upper_bound(logs[:8], unknown=2) == math.inf
    assert upper_bound([*logs[:8], math.inf, math.inf]) == math.inf
    assert upper_bound(logs[:5]) is None


def test_holm_rejects_step_by_step():
    """Holm's procedure on 0.01, 0.04, 0.03, 0.005 at 5%, sorted 0.005 <= 0.05 / 4, 0.01 <= 0.05 / 3, 0.03 >
    0.05 / 2: it ends there, so 0.04 is kept though it is below 5%."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.01, 0.04, None, 0.02, 0.005]) == [True, True, False, True, True]
    assert holm([0.05]) == [True]
    assert holm([0.0501]) == [False]
    assert holm([]) == []


def test_a_missing_p_value_is_no_cell_to_correct_for():
    assert holm([0.02, 0.03]) == [True, True]
    assert holm([None, 0.03, None]) == [False, True, False]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_adjusted_p_values(values):
    """A hypothesis is rejected if the running maximum of (m - rank) p over the smaller ones is at most 5%."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, values[index] / (0.05 / (len(values) - rank)))
        adjusted[index] = highest
    assert holm(values) == [adjusted[index] <= 1 for index in range(len(values))]


# ----------------------------------------------------------------------------- verdicts

TEN_SAVE = compare([Pair(20, arm) for arm in range(8, 18)])


def test_an_arm_saves_if_its_interval_is_below_one_and_the_test_passed_among_all_cells():
    assert verdict(TEN_SAVE, True, 0.0) == "saves"
    assert verdict(TEN_SAVE, False, 0.0) == "does-not-lose"


def test_an_interval_that_touches_one_saves_nothing():
    touching = compare([Pair(20, arm) for arm in (8, 9, 10, 11, 12, 13, 14, 15, 20, 20)])
    assert touching.saved is not None
    assert touching.saved.low == 0
    assert verdict(touching, True, 0.0) == "does-not-lose"


def test_an_arm_that_saves_may_converge_lower_and_one_that_does_not_lose_may_not():
    assert verdict(TEN_SAVE, True, 0.2) == "saves"
    assert verdict(TEN_SAVE, False, 0.2) == "undecided"


@pytest.mark.parametrize(
    ("ratio", "lost", "said"),
    [
        (1.149, 0.0, "does-not-lose"),
        (1.15, 0.0, "undecided"),
        (1.151, 0.0, "undecided"),
        (1.0, 0.005, "does-not-lose"),
        (1.0, 0.8 - 0.795, "does-not-lose"),  # 0.0050000000000000044
        (1.0, 0.0051, "undecided"),
        (1.0, -0.1, "does-not-lose"),
        (1.0, None, "undecided"),
    ],
)
def test_an_arm_does_not_lose_within_fifteen_percent_and_half_a_point(ratio, lost, said):
    """All ten ratios are the same, and so is their bound; nothing is significant."""
    found = compare([Pair(1000, 1000 * ratio)] * 10)
    assert found.upper == pytest.approx(ratio)
    assert verdict(found, False, lost) == said


def test_a_significant_loss_is_no_saving():
    loses = compare([Pair(10, 20)] * 10)
    assert loses.p_value is not None
    assert loses.p_value < 0.01
    assert verdict(loses, True, 0.0) == "undecided"


def test_without_an_interval_nothing_is_said():
    assert verdict(compare([Pair(10, 5)] * 5), True, 0.0) is None
    assert verdict(NOTHING, True, 0.0) is None
    assert verdict(compare([Pair(10, 0)] * 10), True, 0.0) is None


def test_an_arm_that_alone_gets_there_saves():
    found = compare([Pair(None, 5)] * 10)
    assert verdict(found, True, -0.1) == "saves"


def test_an_arm_that_misses_twice_of_ten_is_not_said_to_lose_nothing():
    found = compare([*[Pair(10, 5)] * 8, *[Pair(10, None)] * 2])
    assert found.upper == math.inf
    assert verdict(found, False, 0.0) == "undecided"
