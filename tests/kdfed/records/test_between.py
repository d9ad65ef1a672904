"""Two arms of a summary, of which neither need be the baseline."""

from __future__ import annotations

import pytest

from kdfed.records.between import compare_arms
from tests.simulations.report.summaries import summary_of

NEVER = None


def at(entries, target="0.8"):
    return next(entry for entry in entries if entry["target"] == target)


@pytest.mark.parametrize("cost", ["exchanges", "bytes"])
@pytest.mark.parametrize(
    "warm", [[1, 2, 3, 4, 5, 6, 7], [4, NEVER, 3, 9, 12, NEVER, 2], [0, 0, 1, 2, 3, 4, 5], [NEVER] * 7]
)
def test_against_the_baseline_it_says_what_the_summary_says(warm, cost):
    """With a single rival the corrected verdicts are of the same comparisons."""
    summary = summary_of({"cold": [10, 11, NEVER, 9, 8, 12, 10], "warm": warm})
    for found in compare_arms(summary, "cold", "warm", cost):
        (wanted,) = (
            entry
            for entry in summary["comparisons"]
            if (entry["target"], entry["cost"]) == (found["target"], cost)
        )
        assert found == {**wanted, "ceiling_percent": None}


def test_two_arms_are_paired_by_seed_without_their_baseline():
    """Warm had teachers, and pays 5 where solved pays 10: 50% saved; cold has no part in it."""
    summary = summary_of({"cold": [NEVER] * 7, "solved": [10] * 7, "warm": [4] * 7})
    found = at(compare_arms(summary, "solved", "warm", "exchanges"))
    assert found["saved_percent"]["median"] == pytest.approx(50)
    assert (found["baseline"], found["arm"], found["pairs"], found["verdict"]) == (
        "solved",
        "warm",
        7,
        "saves",
    )


def test_the_other_way_round_the_ratio_is_the_inverse():
    summary = summary_of({"cold": [10] * 7, "solved": [9, 8, 7, 6, 5, 4, 3], "warm": [1, 2, 3, 4, 5, 6, 7]})
    there = at(compare_arms(summary, "solved", "warm", "exchanges"))["ratio"]["geometric_mean"]
    back = at(compare_arms(summary, "warm", "solved", "exchanges"))["ratio"]["geometric_mean"]
    assert there * back == pytest.approx(1.0)


def test_misses_are_counted_by_side():
    summary = summary_of({"cold": [10] * 3, "solved": [9, NEVER, NEVER], "warm": [NEVER, 4, NEVER]})
    found = at(compare_arms(summary, "solved", "warm", "exchanges"))
    assert found["censored"] == {"baseline": 1, "arm": 1, "both": 1}
    assert found["verdict"] is None
