from __future__ import annotations

import json

import pytest

from kdfed.records import Failure, Outcome, RoundRecord, summarise
from simulations.experiments import build_experiment

UPLOADS, UP, DOWN, STEPS = 10, 1000, 2000, 50
"""What one exchange costs in these make-believe runs."""


def curve(arm, seed, accuracies, teachers=0):
    """Return records whose costs are those of ``teachers`` + round exchanges, and 5 bytes of hello."""
    return [
        RoundRecord(
            *(arm, seed, r, r + teachers, "rounds" if r else "start", accuracy, accuracy - 0.01, 1.0),
            *(
                (r + teachers) * cost + hello
                for cost, hello in ((UPLOADS, 0), (UP, 5), (DOWN, 5), (STEPS, 0))
            ),
            *(UPLOADS, (), float(r)),
        )
        for r, accuracy in enumerate(accuracies)
    ]


def experiment(**changes):
    values = {
        "name": "made-up",
        "seeds": [0],
        "targets": [0.8],
        "rounds": {"horizon": 6},
        "arms": {"cold": {}, "warm": {"start": "averaged"}},
    }
    return build_experiment(values | changes)


COLD = [0.1, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8]
WARM = [0.6, 0.8, 0.8, 0.8]
MISS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def summary_of(records, outcomes=None, failures=(), unfinished="failed", **changes):
    """Sum up; unless told otherwise, every run ended after its last round."""
    if outcomes is None:
        outcomes = [Outcome(arm, seed, "horizon", "") for arm, seed in {(r.arm, r.seed) for r in records}]
    made = experiment(**changes)
    summary = summarise(made, "inprocess", records, outcomes, (), failures, unfinished)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    return summary


def comparison(summary, cost):
    (found,) = [entry for entry in summary["comparisons"] if entry["cost"] == cost]
    return found


def test_a_summary_has_the_keys_of_the_contract():
    summary = summary_of(curve("cold", 0, COLD) + curve("warm", 0, WARM, teachers=1))
    assert list(summary) == [
        *(
            "experiment",
            "engine",
            "seeds",
            "targets",
            "metric",
            "versions",
            "failures",
            "runs",
            "comparisons",
            "partitions",
        ),
        "consolidations",
    ]
    assert list(summary["versions"]) == ["python", "kdfed", "torch", "numpy", "flwr"]
    assert summary["targets"] == ["0.8"]
    assert list(summary["runs"][0]) == [
        *("arm", "seed", "target", "target_accuracy", "rule", "rounds_to_target", "exchanges_to_target"),
        *("first_hit", "sustained_hit", "rounds_to_plateau", "totals", "stopped", "final_accuracy"),
        *("best_accuracy", "weights_sha256"),
    ]
    assert list(summary["comparisons"][0]) == [
        *(
            "baseline",
            "arm",
            "target",
            "rule",
            "cost",
            "saved_percent",
            "ratio",
            "pairs",
            "censored",
            "failed",
        )
    ]
    assert [entry["cost"] for entry in summary["comparisons"]] == [
        *("rounds", "exchanges", "participant_uploads", "bytes", "local_steps")
    ]


def test_a_hit_holds_the_costs_of_its_round():
    """WARM first reaches 0.8 in round 1, its second exchange, and stays there."""
    run = summary_of(
        curve("cold", 0, COLD) + curve("warm", 0, WARM, teachers=1), [Outcome("warm", 0, "target", "abc")]
    )["runs"][1]
    assert run["sustained_hit"] == {
        "round": 1,
        "exchanges": 2,
        "participant_uploads": 20,
        "bytes_up": 2005,
        "bytes_down": 4005,
        "local_steps": 100,
        "seconds": 1.0,
        "test_accuracy": 0.79,
    }
    assert run["first_hit"] == run["sustained_hit"]
    assert (run["rounds_to_target"], run["exchanges_to_target"]) == (1, 2)
    assert run["totals"]["exchanges"] == 4
    assert (run["final_accuracy"], run["best_accuracy"]) == (0.8, 0.8)
    assert (run["stopped"], run["weights_sha256"]) == ("target", "abc")


def test_savings_count_the_teacher_exchange():
    """Cold: 4 rounds, 4 exchanges, 40 uploads. Warm: 1 round, 2 exchanges, 20 uploads: 75%, 50%, 50%."""
    summary = summary_of(curve("cold", 0, COLD) + curve("warm", 0, WARM, teachers=1))
    saved = {entry["cost"]: entry["saved_percent"]["mean"] for entry in summary["comparisons"]}
    assert saved["rounds"] == 75
    assert saved["exchanges"] == saved["participant_uploads"] == saved["local_steps"] == 50
    assert saved["bytes"] == pytest.approx(100 * (1 - 6010 / 12010))


def test_an_arm_that_misses_counts_as_one_round_more_than_there_are_and_its_teachers():
    """rounds.horizon 6: 7 rounds, 7 + 1 exchanges, 80 uploads, against 4, 4 and 40: 75% and 100% more."""
    summary = summary_of(curve("cold", 0, COLD) + curve("warm", 0, MISS, teachers=1))
    assert comparison(summary, "rounds")["saved_percent"]["mean"] == -75
    assert comparison(summary, "exchanges")["saved_percent"]["mean"] == -100
    assert comparison(summary, "participant_uploads")["saved_percent"]["mean"] == -100
    assert comparison(summary, "exchanges")["censored"] == {"baseline": 0, "arm": 1, "both": 0}
    run = summary["runs"][1]
    assert run["rounds_to_target"] is run["first_hit"] is run["sustained_hit"] is None


def test_a_miss_of_an_arm_that_stopped_early_is_no_cheaper():
    early = summary_of(curve("cold", 0, COLD) + curve("warm", 0, MISS[:3], teachers=1))
    late = summary_of(curve("cold", 0, COLD) + curve("warm", 0, MISS, teachers=1))
    assert early["comparisons"] == late["comparisons"]


def test_a_miss_without_a_single_round_is_counted_where_its_cost_is_known():
    summary = summary_of(curve("cold", 0, COLD) + curve("warm", 0, MISS[:1], teachers=1))
    assert comparison(summary, "exchanges")["pairs"] == 1
    assert comparison(summary, "bytes")["pairs"] == 0
    assert comparison(summary, "bytes")["censored"]["arm"] == 1


def test_pairs_whose_baseline_misses_stay_out_of_the_mean():
    records = [
        *curve("cold", 0, COLD), *curve("warm", 0, WARM, teachers=1),
        *curve("cold", 1, MISS), *curve("warm", 1, WARM, teachers=1),
        *curve("cold", 2, MISS), *curve("warm", 2, MISS, teachers=1),
    ]  # fmt: skip
    found = comparison(summary_of(records, seeds=[0, 1, 2]), "exchanges")
    assert found["censored"] == {"baseline": 1, "arm": 0, "both": 1}
    assert found["pairs"] == 1
    assert found["saved_percent"] == {"mean": 50, "low": 50, "high": 50}


def test_relative_targets_are_shares_of_the_same_seeds_baseline():
    """Bests 0.8 and 0.7: half of them is 0.4 and 0.35."""
    records = [
        *(record for seed, cold in ((0, COLD), (1, MISS)) for record in curve("cold", seed, cold)),
        *(record for seed in (0, 1) for record in curve("warm", seed, WARM, teachers=1)),
    ]
    runs = summary_of(records, seeds=[0, 1], targets=["50%-of-converged"])["runs"]
    assert [(run["arm"], run["seed"], run["target_accuracy"]) for run in runs] == [
        ("cold", 0, pytest.approx(0.4)),
        ("cold", 1, pytest.approx(0.35)),
        ("warm", 0, pytest.approx(0.4)),
        ("warm", 1, pytest.approx(0.35)),
    ]


def test_the_rule_first_counts_first_hits():
    lucky = [0.1, 0.9, 0.1, 0.1]
    rounds = {"max": 6, "rule": "first"}
    run = summary_of(curve("cold", 0, lucky), rounds=rounds)["runs"][0]
    assert (run["rule"], run["rounds_to_target"], run["sustained_hit"]) == ("first", 1, None)
    assert summary_of(curve("cold", 0, lucky))["runs"][0]["rounds_to_target"] is None


def test_a_run_without_an_outcome_is_a_failed_one():
    records = curve("cold", 0, COLD[:3])
    summary = summary_of(records, [], targets=[0.8, "90%-of-converged"])
    assert [(run["arm"], run["stopped"], run["weights_sha256"]) for run in summary["runs"]] == [
        ("cold", "failed", "")
    ] * 2
    assert comparison(summary_of(records), "rounds")["pairs"] == 0


@pytest.mark.parametrize("baseline", [[], COLD[:3]])
def test_a_relative_target_of_a_baseline_that_did_not_finish_is_unresolved(baseline):
    records = curve("cold", 0, baseline) + curve("warm", 0, WARM, teachers=1)
    failures = [Failure("cold", 0, "rounds", "no power")]
    outcomes = [Outcome("warm", 0, "horizon", "abc")]
    summary = summary_of(records, outcomes, failures=failures, targets=[0.8, "90%-of-converged"])
    warm = [run for run in summary["runs"] if run["arm"] == "warm"]
    assert [(run["target_accuracy"], run["rounds_to_target"]) for run in warm] == [(0.8, 1), (None, None)]
    assert all(run["stopped"] == "failed" for run in summary["runs"] if run["arm"] == "cold")
    assert summary["failures"] == [{"arm": "cold", "seed": 0, "phase": "rounds", "reason": "no power"}]
    entry = next(e for e in summary["comparisons"] if e["target"] == "90%-of-converged")
    assert (entry["pairs"], entry["failed"], set(entry["censored"].values())) == (0, 1, {0})


def test_an_interrupted_run_is_no_miss():
    outcomes = [Outcome("cold", 0, "horizon", "abc")]
    records = curve("cold", 0, COLD) + curve("warm", 0, MISS[:2], teachers=1)
    summary = summary_of(records, outcomes, unfinished="interrupted")
    assert [run["stopped"] for run in summary["runs"]] == ["horizon", "interrupted"]
    assert (comparison(summary, "rounds")["failed"], comparison(summary, "rounds")["pairs"]) == (1, 0)


def test_nothing_recorded_is_still_a_summary():
    summary = summary_of([], [Outcome("cold", 0, "failed", "")])
    assert summary["runs"] == []
    assert all(entry["pairs"] == 0 for entry in summary["comparisons"])


def test_partitions_are_passed_on():
    entry = {"seed": 0, "participants": 1, "moved": 0, "unused": 0, "class_names": ["a"], "counts": [[3]]}
    assert summarise(experiment(), "inprocess", [], [], [entry])["partitions"] == [entry]
