from __future__ import annotations

import json
import math
from statistics import median

import pytest

from kdfed.records import DataFacts, Failure, Outcome, RoundRecord, Summary, summarise
from simulations.experiments import build_experiment

UPLOADS, UP, DOWN, STEPS = 10, 1000, 2000, 50
"""What one exchange costs in these make-believe runs."""

ALWAYS = ["rounds", "exchanges", "participant_uploads", "bytes", "local_steps"]


def curve(arm, seed, accuracies, teachers=0):
    """Return records whose costs are those of ``teachers`` + round exchanges, and 5 bytes of hello."""
    return [
        RoundRecord(
            *(arm, seed, r, r + teachers, "rounds" if r else "start", accuracy, accuracy - 0.01, 1.0),
            *(
                (r + teachers) * cost + hello
                for cost, hello in ((UPLOADS, 0), (UP, 5), (DOWN, 5), (STEPS, 0))
            ),
            *(UPLOADS, (), float(r), accuracy / 2),
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
WARM = [0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
MISS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def hits_at(number, horizon=12):
    """Return a curve that reaches 0.8 in this round and stays there."""
    return [0.1] * number + [0.8] * (horizon + 1 - number)


def outcomes_of(records, stopped="horizon"):
    return [Outcome(arm, seed, stopped, "") for arm, seed in dict.fromkeys((r.arm, r.seed) for r in records)]


def summary_of(records, outcomes=None, failures=(), unfinished="failed", facts=None, **changes):
    """Sum up; unless told otherwise, every run ended after its last round."""
    if outcomes is None:
        outcomes = outcomes_of(records)
    made = experiment(**changes)
    summary = summarise(made, "inprocess", records, outcomes, (), failures, unfinished, facts)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert Summary.model_validate(summary).model_dump(by_alias=True) == summary
    return summary


def paired(cold, warm, arm="warm", teachers=1, horizon=12, **changes):
    """Sum up seeds whose cold and warm runs hit in these rounds; None is a miss."""
    records = []
    for seed, both in enumerate(zip(cold, warm, strict=True)):
        for name, number, trips in (("cold", both[0], 0), (arm, both[1], teachers)):
            reached = [0.1] * (horizon + 1) if number is None else hits_at(number, horizon)
            records += curve(name, seed, reached, trips)
    rounds = {"horizon": horizon}
    return summary_of(records, seeds=list(range(len(cold))), rounds=rounds, **changes)


def comparison(summary, cost, target="0.8", arm="warm"):
    (found,) = [
        entry
        for entry in summary["comparisons"]
        if (entry["cost"], entry["target"], entry["arm"]) == (cost, target, arm)
    ]
    return found


# ----------------------------------------------------------------------------- the contract


def test_a_summary_has_the_keys_of_the_contract():
    summary = summary_of(curve("cold", 0, COLD) + curve("warm", 0, WARM, teachers=1))
    assert list(summary) == [
        *("schema", "note", "experiment", "engine", "seeds", "targets", "metric", "horizon"),
        *("evaluation_examples", "majority", "server_labels", "versions", "failures", "runs", "comparisons"),
        *("controls", "partitions", "consolidations", "refits", "recipes", "sunk"),
    ]
    assert (summary["schema"], summary["note"]) == (2, "")
    assert list(summary["versions"]) == ["python", "kdfed", "torch", "numpy", "flwr"]
    assert summary["targets"] == ["0.8", "99%-of-converged"]
    assert list(summary["runs"][0]) == [
        *("arm", "seed", "target", "target_accuracy", "rounds_to_target", "exchanges_to_target", "hit"),
        *("first_hit", "rounds_to_convergence", "plateau", "plateau_half", "plateau_double", "totals"),
        *("stopped", "final_accuracy", "converged_accuracy", "best_accuracy", "weights_sha256"),
    ]
    assert list(summary["comparisons"][0]) == [
        *("baseline", "arm", "target", "cost", "saved_percent", "ratio", "verdict", "p_value"),
        *("ceiling_percent", "pairs", "censored", "without_federation", "failed"),
    ]
    assert [(entry["target"], entry["cost"]) for entry in summary["comparisons"]] == [
        *(("0.8", cost) for cost in ALWAYS),
        *(("99%-of-converged", cost) for cost in (*ALWAYS, "rounds_to_convergence")),
    ]
    assert list(summary["controls"]) == ["server_alone", "server_start", "averaged", "longer"]


def test_the_horizon_is_told_with_its_reason():
    records = curve("cold", 0, COLD)
    assert summary_of(records)["horizon"] == {"rounds": 6, "why": "given in the experiment"}
    why = "1.5 times the plateau of cold, round 4, on seed 100"
    found = summary_of(records, rounds={"horizon": 6, "why": why})
    assert found["horizon"] == {"rounds": 6, "why": why}


def test_what_the_data_say_is_passed_on_and_null_where_they_are_not_at_hand():
    records = curve("cold", 0, COLD)
    told = summary_of(records, facts=DataFacts(1000, 0.1, 250, 500))
    assert (told["evaluation_examples"], told["majority"], told["server_labels"]) == (1000, 0.1, 250)
    silent = summary_of(records)
    assert (silent["evaluation_examples"], silent["majority"], silent["server_labels"]) == (None, None, None)


def test_partitions_are_passed_on():
    entry = {"seed": 0, "participants": 1, "moved": 0, "unused": 0, "class_names": ["a"], "counts": [[3]]}
    assert summarise(experiment(), "inprocess", [], [], [entry])["partitions"] == [entry]


def test_nothing_recorded_is_still_a_summary():
    summary = summary_of([], [Outcome("cold", 0, "failed", "")])
    assert summary["runs"] == []
    assert all(entry["pairs"] == 0 for entry in summary["comparisons"])


# ----------------------------------------------------------------------------- runs


def test_a_hit_holds_the_costs_and_the_accuracy_of_its_round():
    """WARM first reaches 0.8 in round 1, its second exchange, and stays there."""
    records = curve("cold", 0, COLD) + curve("warm", 0, WARM, teachers=1)
    outcomes = [Outcome("cold", 0, "horizon", ""), Outcome("warm", 0, "horizon", "abc")]
    run = next(run for run in summary_of(records, outcomes)["runs"] if run["arm"] == "warm")
    assert run["hit"] == {
        "round": 1,
        "accuracy": 0.8,
        "exchanges": 2,
        "participant_uploads": 20,
        "bytes_up": 2005,
        "bytes_down": 4005,
        "local_steps": 100,
        "seconds": 1.0,
        "simulated_seconds": None,
        "test_accuracy": 0.79,
    }
    assert run["first_hit"] == run["hit"]
    assert (run["rounds_to_target"], run["exchanges_to_target"]) == (1, 2)
    assert run["totals"]["exchanges"] == 7
    assert (run["final_accuracy"], run["best_accuracy"]) == (0.8, 0.8)
    assert (run["stopped"], run["weights_sha256"]) == ("horizon", "abc")


def test_the_billed_round_is_at_the_target_where_the_old_rule_billed_one_below_it():
    """The mean of three reaches 0.8 from round 1 on, where the model is at 0.65."""
    early = [0.1, 0.65, 0.9, 0.9, 0.9, 0.9, 0.9]
    run = summary_of(curve("cold", 0, early))["runs"][0]
    assert (run["rounds_to_target"], run["hit"]["accuracy"]) == (2, 0.9)


def test_a_lucky_evaluation_is_described_and_not_billed():
    run = summary_of(curve("cold", 0, [0.1, 0.9, 0.1, 0.1, 0.8, 0.8, 0.8]))["runs"][0]
    assert (run["first_hit"]["round"], run["rounds_to_target"]) == (1, 4)
    miss = summary_of(curve("cold", 0, [0.1, 0.9, *[0.1] * 5]))["runs"][0]
    assert (miss["first_hit"]["round"], miss["hit"], miss["exchanges_to_target"]) == (1, None, None)


def test_hits_are_read_on_the_evaluation_split_alone():
    """The validation accuracies of these records are half, and reach nothing."""
    (run, _) = summary_of(curve("cold", 0, COLD))["runs"]
    assert run["rounds_to_target"] == 4


def test_an_arm_converges_to_the_mean_of_its_last_ten_and_gets_there_at_99_percent_of_the_baselines():
    """Cold converges to 0.8: 99% of it is 0.792, which it reaches in round 5, the other arm in round 2. What
    that one converges to itself, 0.9, is described."""
    cold, warm = hits_at(5, 15), [0.1, 0.7, *[0.9] * 14]
    records = curve("cold", 0, cold) + curve("warm", 0, warm, teachers=1)
    summary = summary_of(records, rounds={"horizon": 15})
    runs = {(run["arm"], run["target"]): run for run in summary["runs"]}
    assert runs["cold", "0.8"]["converged_accuracy"] == pytest.approx(0.8)
    assert runs["warm", "0.8"]["converged_accuracy"] == pytest.approx(0.9)
    assert runs["warm", "99%-of-converged"]["target_accuracy"] == pytest.approx(0.792)
    for target in summary["targets"]:
        assert runs["cold", target]["rounds_to_convergence"] == 5
        assert runs["warm", target]["rounds_to_convergence"] == 2
    assert runs["warm", "99%-of-converged"]["hit"]["exchanges"] == 3


def test_plateaus_are_told_for_half_and_twice_the_tolerance():
    """From round 10 on it rises by 0.0006 a round, 0.012 in 20 rounds, and from round 40 on by 0.0001: in the
    last half of all rounds less than 0.008, and always more than 0.004."""
    slow = [0.05 * r for r in range(10)] + [0.5 + 0.0006 * r for r in range(30)]
    slow += [slow[-1] + 0.0001 * r for r in range(1, 82)]
    rounds = {"horizon": 120, "plateau": {"rounds": 20, "min-delta": 0.008}}
    run = summary_of(curve("cold", 0, slow), rounds=rounds)["runs"][0]
    assert run["plateau_half"] is None
    assert run["plateau_double"] == 34
    assert 40 < run["plateau"] < 120


def test_relative_targets_are_shares_of_what_the_same_seeds_baseline_converges_to():
    """Means of rounds 1 to 6: 0.65 and 0.45; half of them is 0.325 and 0.225."""
    records = [
        *(record for seed, cold in ((0, COLD), (1, MISS)) for record in curve("cold", seed, cold)),
        *(record for seed in (0, 1) for record in curve("warm", seed, WARM, teachers=1)),
    ]
    runs = summary_of(records, seeds=[0, 1], targets=["50%-of-converged"])["runs"]
    halves = [run for run in runs if run["target"] == "50%-of-converged"]
    assert [(run["arm"], run["seed"], run["target_accuracy"]) for run in halves] == [
        ("cold", 0, pytest.approx(0.325)),
        ("cold", 1, pytest.approx(0.225)),
        ("warm", 0, pytest.approx(0.325)),
        ("warm", 1, pytest.approx(0.225)),
    ]


def test_a_share_of_the_gain_counts_from_the_majority_and_is_unresolved_without_the_data():
    """0.6 + 0.9 * (0.8 - 0.6)."""
    records = curve("cold", 0, hits_at(2))
    changes = {"targets": ["90%-of-gain"], "rounds": {"horizon": 12}}
    told, _ = summary_of(records, facts=DataFacts(500, 0.6, 0, 0), **changes)["runs"]
    assert told["target_accuracy"] == pytest.approx(0.78)
    assert told["rounds_to_target"] == 2
    silent, _ = summary_of(records, **changes)["runs"]
    assert (silent["target_accuracy"], silent["rounds_to_target"]) == (None, None)


# ----------------------------------------------------------------------------- runs that did not finish


def test_a_run_without_an_outcome_is_a_failed_one():
    records = curve("cold", 0, COLD[:3])
    summary = summary_of(records, [])
    assert {(run["arm"], run["stopped"], run["weights_sha256"]) for run in summary["runs"]} == {
        ("cold", "failed", "")
    }
    assert comparison(summary_of(records), "rounds")["pairs"] == 0


@pytest.mark.parametrize("baseline", [[], COLD[:3], COLD[:6]])
def test_a_failed_baseline_leaves_only_relative_targets_of_its_seed_unresolved(baseline):
    records = curve("cold", 0, baseline) + curve("warm", 0, WARM, teachers=1)
    records += curve("cold", 1, COLD) + curve("warm", 1, WARM, teachers=1)
    failures = [Failure("cold", 0, "rounds", "no power")]
    outcomes = [outcome for outcome in outcomes_of(records) if (outcome.arm, outcome.seed) != ("cold", 0)]
    summary = summary_of(
        records, outcomes, failures=failures, targets=[0.8, "90%-of-converged"], seeds=[0, 1]
    )
    warm = {(run["seed"], run["target"]): run for run in summary["runs"] if run["arm"] == "warm"}
    assert (warm[0, "0.8"]["target_accuracy"], warm[0, "0.8"]["rounds_to_target"]) == (0.8, 1)
    for target in ("90%-of-converged", "99%-of-converged"):
        assert (warm[0, target]["target_accuracy"], warm[0, target]["hit"]) == (None, None)
        assert warm[1, target]["target_accuracy"] is not None
        assert warm[1, target]["hit"] is not None
    assert warm[0, "0.8"]["converged_accuracy"] == pytest.approx(0.8)
    assert all(
        (run["stopped"], run["converged_accuracy"]) == ("failed", None)
        for run in summary["runs"]
        if (run["arm"], run["seed"]) == ("cold", 0)
    )
    assert summary["failures"] == [{"arm": "cold", "seed": 0, "phase": "rounds", "reason": "no power"}]
    for target in summary["targets"]:
        entry = comparison(summary, "rounds", target)
        assert (entry["pairs"], entry["failed"], set(entry["censored"].values())) == (1, 1, {0})


@pytest.mark.parametrize("stopped", ["failed", "interrupted"])
def test_a_run_that_failed_after_its_hit_is_no_pair(stopped):
    """If it were, quick runs alone would be left of those that fail."""
    records = curve("cold", 0, COLD) + curve("warm", 0, WARM[:5], teachers=1)
    summary = summary_of(records, [Outcome("cold", 0, "horizon", "")], unfinished=stopped)
    assert [run["rounds_to_target"] for run in summary["runs"] if run["target"] == "0.8"] == [4, 1]
    entry = comparison(summary, "exchanges")
    assert (entry["pairs"], entry["failed"], entry["saved_percent"]) == (0, 1, None)


def test_an_interrupted_run_is_no_miss():
    outcomes = [Outcome("cold", 0, "horizon", "abc")]
    records = curve("cold", 0, COLD) + curve("warm", 0, MISS[:2], teachers=1)
    summary = summary_of(records, outcomes, unfinished="interrupted")
    stopped = {run["arm"]: run["stopped"] for run in summary["runs"]}
    assert stopped == {"cold": "horizon", "warm": "interrupted"}
    assert (comparison(summary, "rounds")["failed"], comparison(summary, "rounds")["pairs"]) == (1, 0)


@pytest.mark.parametrize("how", ["listener", "target", "plateau"])
def test_a_run_that_ended_early_without_a_hit_is_no_miss_and_with_one_it_is_a_pair(how):
    records = curve("cold", 0, COLD) + curve("warm", 0, MISS[:5], teachers=1)
    outcomes = [Outcome("cold", 0, "horizon", ""), Outcome("warm", 0, how, "")]
    entry = comparison(summary_of(records, outcomes), "rounds")
    assert (entry["pairs"], entry["failed"], entry["censored"]["arm"]) == (0, 1, 0)
    records = curve("cold", 0, COLD) + curve("warm", 0, WARM[:5], teachers=1)
    entry = comparison(summary_of(records, outcomes), "rounds")
    assert (entry["pairs"], entry["failed"]) == (1, 0)


def test_a_baseline_that_ended_early_converged_to_nothing_that_is_known():
    """It was still rising; a share of what it had reached so far would be an easy target."""
    records = curve("cold", 0, COLD[:4]) + curve("warm", 0, WARM, teachers=1)
    outcomes = [Outcome("cold", 0, "listener", ""), Outcome("warm", 0, "horizon", "")]
    summary = summary_of(records, outcomes)
    assert {run["converged_accuracy"] for run in summary["runs"] if run["arm"] == "cold"} == {None}
    entry = comparison(summary, "rounds_to_convergence", "99%-of-converged")
    assert (entry["pairs"], entry["failed"], entry["ceiling_percent"]) == (0, 1, None)


# ----------------------------------------------------------------------------- comparisons


def test_savings_count_the_teacher_exchange():
    """Cold: 4 rounds, 4 exchanges, 40 uploads. Warm: 1 round, 2 exchanges, 20 uploads: 75%, 50%, 50%."""
    summary = summary_of(curve("cold", 0, COLD) + curve("warm", 0, WARM, teachers=1))
    saved = {cost: comparison(summary, cost)["saved_percent"]["median"] for cost in ALWAYS}
    assert saved["rounds"] == pytest.approx(75)
    for cost in ("exchanges", "participant_uploads", "local_steps"):
        assert saved[cost] == pytest.approx(50)
    assert saved["bytes"] == pytest.approx(100 * (1 - 6010 / 12010))


def test_a_longer_horizon_does_not_change_what_an_absolute_target_costs():
    """The first version's misses cost one round more than there were, so that the horizon made the figure."""
    short = comparison(paired([8, 8, 8], [2, 2, None], horizon=12), "rounds")
    long = comparison(paired([8, 8, 8], [2, 2, None], horizon=24), "rounds")
    assert short == long
    assert short["saved_percent"]["median"] == pytest.approx(75)


def test_a_miss_of_the_arm_is_unbounded_and_not_one_round_more_than_there_are():
    summary = paired([4], [None])
    entry = comparison(summary, "exchanges")
    assert entry["censored"] == {"baseline": 0, "arm": 1, "both": 0}
    assert entry["pairs"] == 1
    assert entry["saved_percent"] == {"median": None, "low": None, "high": None}
    assert entry["ratio"] is None


def test_a_miss_of_the_baseline_alone_is_a_pair():
    """The first version dropped these seeds, though the arm got there."""
    entry = comparison(paired([4, None, None], [1, 2, 3]), "rounds")
    assert (entry["pairs"], entry["censored"]) == (3, {"baseline": 2, "arm": 0, "both": 0})
    assert entry["saved_percent"]["median"] == 100.0


def test_two_misses_widen_the_interval_and_are_counted():
    entry = comparison(paired([8] * 5 + [None], [2] * 5 + [None]), "rounds")
    assert (entry["pairs"], entry["censored"]) == (6, {"baseline": 0, "arm": 0, "both": 1})
    assert entry["saved_percent"] == {
        "median": pytest.approx(75),
        "low": None,
        "high": pytest.approx(100),
    }
    assert entry["ratio"] is None
    only = comparison(paired([None] * 6, [None] * 6), "rounds")
    assert (only["pairs"], only["saved_percent"], only["verdict"]) == (6, None, "undecided")


def test_ten_seeds_give_the_second_to_the_ninth():
    """Cold takes 10 rounds, warm 1 to 10: the median is between 5 and 6, the ends are 2 and 9."""
    entry = comparison(paired([10] * 10, range(1, 11)), "rounds")
    assert entry["saved_percent"] == {
        "median": pytest.approx(100 * (1 - math.sqrt(30) / 10)),
        "low": pytest.approx(10),
        "high": pytest.approx(80),
    }
    logs = [math.log(r / 10) for r in range(1, 11)]
    assert entry["ratio"]["geometric_mean"] == pytest.approx(math.exp(sum(logs) / 10))
    assert entry["ratio"]["low"] < entry["ratio"]["geometric_mean"] < entry["ratio"]["high"]


def test_fewer_than_six_seeds_give_a_point_and_no_verdict():
    entry = comparison(paired([8] * 5, [2] * 5), "exchanges")
    assert entry["saved_percent"] == {"median": pytest.approx(100 * (1 - 3 / 8)), "low": None, "high": None}
    assert entry["ratio"] == {"geometric_mean": pytest.approx(3 / 8), "low": None, "high": None}
    assert (entry["verdict"], entry["p_value"]) == (None, None)


def test_rounds_and_exchanges_of_a_hit_count_at_least_one():
    """Warm is there at its start, after the teacher exchange: 0 rounds and 1 exchange against 4 of each."""
    summary = paired([4], [0])
    (run,) = [run for run in summary["runs"] if (run["arm"], run["target"]) == ("warm", "0.8")]
    assert (run["rounds_to_target"], run["exchanges_to_target"]) == (0, 1)
    for cost in ("rounds", "exchanges"):
        assert comparison(summary, cost)["saved_percent"]["median"] == pytest.approx(75)
    both = paired([0], [0])
    assert comparison(both, "rounds")["saved_percent"]["median"] == 0
    assert comparison(both, "rounds", "99%-of-converged")["ratio"]["geometric_mean"] == 1


def test_a_baseline_that_costs_nothing_leaves_nothing_to_save():
    """Cold is there at its start: of its local steps, none, nothing can be saved."""
    entry = comparison(paired([0] * 6, [2] * 6), "local_steps")
    assert (entry["saved_percent"], entry["ratio"], entry["pairs"]) == (None, None, 6)


def test_an_arm_that_costs_no_exchange_is_solved_without_federation_and_in_no_ratio():
    summary = paired([4, 4, 4], [0, 2, 0], teachers=0)
    entry = comparison(summary, "exchanges")
    assert (entry["without_federation"], entry["pairs"], entry["failed"]) == (2, 1, 0)
    assert entry["saved_percent"]["median"] == pytest.approx(50)
    alone = comparison(paired([4, None], [0, 0], teachers=0), "bytes")
    assert (alone["without_federation"], alone["pairs"], alone["saved_percent"]) == (2, 0, None)


def test_the_ceiling_is_what_a_single_exchange_would_save():
    """Cold takes 4, 8 and 10 rounds: at most 75, 87.5 and 90% can be saved, whatever the arm does."""
    summary = paired([4, 8, 10], [1, 1, 1])
    wanted = median([75, 87.5, 90])
    assert comparison(summary, "rounds")["ceiling_percent"] == pytest.approx(wanted)
    assert comparison(summary, "exchanges")["ceiling_percent"] == pytest.approx(wanted)
    assert comparison(summary, "exchanges", "99%-of-converged")["ceiling_percent"] is not None
    for cost in ("bytes", "local_steps", "participant_uploads"):
        assert comparison(summary, cost)["ceiling_percent"] is None
    solved = comparison(paired([4, 8, 10], [0, 0, 0], teachers=0), "rounds")
    assert (solved["pairs"], solved["ceiling_percent"]) == (0, pytest.approx(wanted))
    assert comparison(paired([None], [1]), "rounds")["ceiling_percent"] is None


@pytest.mark.parametrize("cold", [[4, 10], [4, None], [4, 10, None, None], [4, None, None]])
def test_an_arm_of_a_single_exchange_saves_exactly_the_ceiling(cold):
    """The median of 75 and 90% is 82.5%, but that of log-ratios 84.2%: nobody is above the ceiling."""
    entry = comparison(paired(cold, [1] * len(cold), teachers=0), "exchanges")
    assert entry["ceiling_percent"] == entry["saved_percent"]["median"] >= 75


# ----------------------------------------------------------------------------- verdicts


def test_ten_seeds_that_all_save_are_said_to():
    entry = comparison(paired([10] * 10, [2] * 10), "rounds")
    assert entry["verdict"] == "saves"
    assert entry["p_value"] == pytest.approx(2 / 1024)


def test_verdicts_of_one_cost_hold_together():
    """Six of six have p = 2 / 64 = 3.1%. Of one cell that is enough; the two targets of a cost are two cells,
    and 5% / 2 is less."""
    both = paired([10] * 6, [2] * 6)
    assert {comparison(both, "rounds", target)["verdict"] for target in both["targets"]} == {"does-not-lose"}
    assert comparison(both, "rounds")["p_value"] == pytest.approx(2 / 64)
    entry = comparison(both, "rounds_to_convergence", "99%-of-converged")
    assert (entry["verdict"], entry["p_value"]) == ("saves", pytest.approx(2 / 64))


def lowered(by, seeds=10, horizon=30):
    """Sum up arms that are equally quick, of which one converges lower."""
    cold, warm = [0.1, *[0.9] * horizon], [0.1, *[0.9] * 8, *[0.9 - by] * (horizon - 8)]
    records = [
        r for s in range(seeds) for arm, c in (("cold", cold), ("warm", warm)) for r in curve(arm, s, c)
    ]
    return summary_of(records, seeds=list(range(seeds)), rounds={"horizon": horizon}, targets=[0.8])


@pytest.mark.parametrize(
    ("by", "said"), [(0.0, "does-not-lose"), (0.005, "does-not-lose"), (0.006, "undecided")]
)
def test_an_arm_that_is_as_quick_does_not_lose_unless_it_converges_lower(by, said):
    entry = comparison(lowered(by), "rounds")
    assert entry["saved_percent"] == {"median": 0, "low": 0, "high": 0}
    assert entry["verdict"] == said


@pytest.mark.parametrize(("rounds", "said"), [(22, "does-not-lose"), (23, "undecided")])
def test_an_arm_that_takes_fifteen_percent_more_loses(rounds, said):
    """22 / 20 is 1.10, 23 / 20 is 1.15."""
    entry = comparison(paired([20] * 10, [rounds] * 10, horizon=40), "rounds")
    assert entry["verdict"] == said


def test_controls_are_compared_and_get_no_verdict():
    """Nor do they make the verdicts of the others harder to get: with them there are four cells of a cost."""
    arms = {"cold": {}, "warm": {"start": "consolidated"}}
    records = []
    for seed in range(7):
        records += curve("cold", seed, hits_at(10))
        for arm in ("warm", "averaged"):
            records += curve(arm, seed, hits_at(2), teachers=1)
    changes = {"arms": arms, "seeds": list(range(7)), "rounds": {"horizon": 12}}
    summary = summary_of(records, controls=["averaged"], **changes)
    assert [entry["arm"] for entry in summary["comparisons"]] == ["warm"] * 11 + ["averaged"] * 11
    control, arm = (comparison(summary, "rounds", arm=name) for name in ("averaged", "warm"))
    assert control["verdict"] is None
    assert control["saved_percent"] == arm["saved_percent"]
    assert control["p_value"] == arm["p_value"] == pytest.approx(2 / 128)
    assert arm["verdict"] == "saves"  # 1.6% is below 5% / 2, and not below 5% / 4


# ----------------------------------------------------------------------------- controls


def test_controls_that_were_not_run_say_so():
    controls = summary_of(curve("cold", 0, COLD), arms={"cold": {}})["controls"]
    assert {name: (entry["arm"], entry["why"]) for name, entry in controls.items()} == {
        "server_alone": (None, "not run; add it with controls: [server]"),
        "server_start": (None, "not run; add it with controls: [server]"),
        "averaged": (None, "not run; add it with controls: [averaged]"),
        "longer": (None, "not run; add it with controls: [longer]"),
    }
    assert all(set(list(entry.values())[2:]) == {None} for entry in controls.values())


def test_a_control_tells_its_start_what_it_converges_to_and_its_test_accuracy():
    """Of two seeds: starts 0.6 and 0.4, converged 0.8 and 0.8, tests at the end 0.79."""
    records = []
    for seed, start in ((0, 0.6), (1, 0.4)):
        records += curve("cold", seed, COLD)
        records += curve("averaged", seed, [start, *[0.8] * 6], teachers=1)
    arms = {"cold": {}, "averaged": {"start": "averaged"}}
    controls = summary_of(records, arms=arms, seeds=[0, 1])["controls"]
    assert controls["averaged"] == {
        "arm": "averaged",
        "why": "",
        "labels": None,
        "start_accuracy": pytest.approx(0.5),
        "converged_accuracy": pytest.approx(0.8),
        "test_accuracy": pytest.approx(0.79),
    }


def test_the_server_alone_is_round_0_of_the_arm_that_starts_from_its_model():
    records = curve("cold", 0, COLD) + curve("mine", 0, WARM)
    changes = {"arms": {"cold": {}, "mine": {"start": "server"}}, "facts": DataFacts(1000, 0.1, 500, 500)}
    summary = summary_of(records, **changes)
    alone, start = (summary["controls"][name] for name in ("server_alone", "server_start"))
    assert (alone["arm"], start["arm"]) == ("mine", "mine")
    assert (alone["labels"], start["labels"]) == (500, 500)
    assert (alone["start_accuracy"], alone["converged_accuracy"]) == (0.6, None)
    assert alone["test_accuracy"] == pytest.approx(0.59)
    assert start["test_accuracy"] == pytest.approx(0.79)
    assert start["converged_accuracy"] == pytest.approx(0.8)
