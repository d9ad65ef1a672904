from __future__ import annotations

import math

import pytest

from kdfed.convergence import UNREACHABLE
from kdfed.pooled import pool
from simulations.report.counted import control_arms, level_of, ratios_of, still_rising
from simulations.report.rows import control_heads, control_rows, labels_of, not_run, rising, starts_of
from tests.simulations.report.summaries import HORIZON, curve, summary_of

NEVER = None


@pytest.mark.parametrize("seeds", [3, 7])
def test_the_seeds_behind_every_figure_are_those_of_the_summary(seeds):
    """What is shown seed by seed has the pairs, the misses and the median of ``comparisons``."""
    cold = [10, 12, NEVER, NEVER, 20, 9, 11][:seeds]
    warm = [4, NEVER, 5, NEVER, 6, 7, 3][:seeds]
    arms = {"cold": cold, "warm": warm, "other": [0, 3, 30, 4, 5, 6, 7][:seeds]}
    summary = summary_of(arms, failed=[("other", 1)])  # after its hit
    told = [entry for entry in summary["comparisons"] if entry["saved_percent"] is not None]
    assert {entry["target"] for entry in told} == {"0.8", "99%-of-converged"}
    for comparison in told:
        ratios = list(ratios_of(summary, comparison).values())
        missed = {
            "baseline": ratios.count(-math.inf),
            "arm": ratios.count(math.inf),
            "both": sum(map(math.isnan, ratios)),
        }
        assert (len(ratios), missed) == (comparison["pairs"], comparison["censored"])
        (median,) = pool([ratios]).medians
        saved = 100 * (1 - math.exp(median))
        assert comparison["saved_percent"]["median"] == (None if saved == -math.inf else pytest.approx(saved))


# ----------------------------------------------------------------------------- convergence


def test_every_arm_has_its_rounds_to_convergence():
    cold, warm = rising(summary_of({"cold": [10, 12], "warm": [4, NEVER]}))
    assert (cold.arm, cold.rounds, cold.saved, cold.accuracy) == ("cold", "10, 12", None, "90.0%")
    assert (warm.rounds, warm.saved.figure, warm.saved.others) == (
        *("4, missed", "60% fewer"),
        "warm misses it in 1 seed",
    )


def test_a_curve_is_flat_where_the_summary_says_so():
    summary = summary_of({"cold": [10, 12, 14]})
    for run, (plateau, half) in zip(summary["runs"], 2 * [(30, 31), (32, None), (34, None)], strict=False):
        run |= {"plateau": plateau, "plateau_half": half, "plateau_double": plateau - 2}
    summary["runs"] = [run for run in summary["runs"] if run["target"] == "0.8"]
    for run, (plateau, half) in zip(summary["runs"], [(30, 31), (32, None), (34, None)], strict=True):
        run |= {"plateau": plateau, "plateau_half": half, "plateau_double": plateau - 2}
    (cold,) = rising(summary)
    assert (cold.flat, cold.half, cold.double) == ("32", "never", "30")


def test_a_baseline_that_still_rises_is_said_to():
    """Of five evaluations at 0.9 from round 17 on, 20 rounds later is behind the horizon."""
    assert still_rising(summary_of({"cold": [3, 3]})) == ""
    said = still_rising(summary_of({"cold": [3, 17], "warm": [1, 1]}))
    assert said.startswith(f"cold was not flat within the horizon of {HORIZON} rounds in 1 of 2 seeds")


# ----------------------------------------------------------------------------- controls


def test_arms_controls_and_the_ceiling_stand_in_one_table():
    """The ceiling: one exchange instead of 10 or 20, in the middle of the logarithms 14.1, saves 92.9%."""
    arms = {"cold": [10, 20], "warm": [4, 5], "server": [6, 7]}
    summary = summary_of(arms, controls=["server"])
    rows = [row.cells for row in control_rows(summary, {"cold": 0.1, "warm": 0.6})]
    assert control_heads(summary)[1:] == [
        *("server labels", "start", "converged", "test", "to 80%", "to 99% of converged")
    ]
    assert rows == [
        ["cold", "0", "10.0%", "90.0%", "85.0%", "10, 20", "10, 20"],
        ["warm", "0", "60.0%", "90.0%", "85.0%", "5, 6", "5, 6"],
        ["server alone", "500", "10.0%", "–", "5.0%", "below it", "below it"],
        ["start from that model", "500", "10.0%", "90.0%", "85.0%", "6, 7", "6, 7"],
        ["averaged teachers", "not run", *["–"] * 5],
        ["cold with the teachers' steps", "not run", *["–"] * 5],
        ["ceiling: one exchange", *["–"] * 4, "93% saved", "93% saved"],
    ]


def test_a_control_that_was_not_run_says_how_to_run_it():
    told = not_run(summary_of({"cold": [10], "warm": [4]}))
    assert "server alone and start from that model: " in told
    for name in ("server", "averaged", "longer"):
        assert f"controls: [{name}]" in told
    assert "averaged" not in not_run(summary_of({"cold": [10], "averaged": [4]}, controls=["averaged"]))


def test_a_server_that_is_there_at_the_start_needs_nobody():
    summary = summary_of({"cold": [10, 10], "server": [0, 0]}, controls=["server"])
    alone, start = (row.cells for row in control_rows(summary, {})[1:3])
    assert (alone[2], alone[-2]) == ("90.0%", "there at 0")
    assert start[-2] == "0: without federation"


def test_labels_that_arms_may_choose_with_are_counted():
    assert labels_of(summary_of({"cold": [1]})) == "0"
    assert labels_of(summary_of({"cold": [1]}, server_labels=1500)) == "≤ 1,500"


def test_an_arm_of_a_controls_name_that_is_judged_is_none():
    arms = {"cold": [10] * 6, "averaged": [4] * 6}
    assert control_arms(summary_of(arms, controls=["averaged"])) == {"averaged"}
    assert control_arms(summary_of(arms)) == set()


def test_starts_are_means_over_seeds():
    assert starts_of([*curve("cold", 0, 0), *curve("cold", 1, 4)]) == {"cold": pytest.approx(0.5)}


def test_a_target_that_nobody_can_reach_has_no_level():
    """A share of what a baseline converges to that is not above 0; its 2 is no accuracy."""
    summary = summary_of({"cold": [4, 4], "warm": [2, 2]}, targets=["90%-of-converged"])
    level = level_of(summary, "90%-of-converged")
    for run in summary["runs"]:
        run["target_accuracy"] = UNREACHABLE if run["seed"] == 1 else run["target_accuracy"]
    assert level_of(summary, "90%-of-converged") == pytest.approx(level)
    for run in summary["runs"]:
        run["target_accuracy"] = UNREACHABLE
    assert level_of(summary, "90%-of-converged") is None
