"""The independent recount: curves worked by hand, laws of its statistics, and agreement with kdfed's summary.

The first version of kdfed counted by other rules. Each of them stands here as the few lines that it was,
beside a curve or a table of costs that it got wrong.
"""

from __future__ import annotations

import ast
import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clients.client_app import app
from kdfed.closed_form import Refit
from kdfed.records import DataFacts, Outcome, RoundRecord, RunFolder, summarise
from simulations.engines.inprocess import InProcessGrid
from simulations.experiments import build_experiment, merge
from simulations.server_app import run_experiment
from tests import recount
from tests.recount import (
    compare,
    converged,
    disagreements,
    ends,
    first_hit,
    hit,
    holm,
    log_ratio,
    one_sided_rank,
    plateau,
    resolve,
    sign_test,
    two_sided_rank,
    verdict,
)

Pairs = list[tuple[float | None, float | None]]


# Hits


def _hit_of_the_first_version(curve: list[float], target: float) -> int | None:
    return next((r for r in range(len(curve) - 2) if sum(curve[r : r + 3]) / 3 >= target - 1e-9), None)


def test_a_round_below_the_target_is_not_billed():
    """(0.65 + 0.90 + 0.91) / 3 is 0.82: the mean alone bills round 1, whose model is 15 points short."""
    curve = [0.10, 0.65, 0.90, 0.91, 0.92]
    assert _hit_of_the_first_version(curve, 0.8) == 1
    assert hit(curve, 0.8) == 2


def test_a_hit_is_never_before_the_first_evaluation_that_reaches_the_target():
    """Means of three from round 0 on: 0.80 and 0.87; no evaluation before round 1 is at 0.8."""
    curve = [0.74, 0.82, 0.84, 0.95]
    assert (_hit_of_the_first_version(curve, 0.8), first_hit(curve, 0.8)) == (0, 1)
    assert hit(curve, 0.8) == 1


def test_a_lucky_evaluation_is_a_first_hit_and_no_hit():
    """From round 1 the mean is 0.77; round 2 is itself below; from round 3 it is 0.83."""
    curve = [0.1, 0.9, 0.5, 0.9, 0.8, 0.8]
    assert (first_hit(curve, 0.8), hit(curve, 0.8)) == (1, 3)


def test_a_hit_needs_the_two_evaluations_after_it():
    assert hit([0.1, 0.9, 0.9], 0.8) is None
    assert hit([0.1, 0.9, 0.9, 0.6], 0.8) == 1
    assert hit([0.9, 0.9, 0.9], 0.8) == 0
    assert hit([], 0.8) is None


def test_rounding_costs_no_hit():
    assert hit([0.3] * 3, 0.1 + 0.2) == 0
    assert hit([456 / 500] * 3, resolve("95%-of-converged", 0.96, None)) == 0


CURVES = st.lists(st.integers(0, 20).map(lambda k: k / 20), max_size=40)


@given(CURVES, st.integers(1, 20).map(lambda k: k / 20))
def test_a_hit_reaches_its_target_and_is_not_before_that_of_a_lower_one(curve, target):
    found, lower = hit(curve, target), hit(curve, target / 2)
    if found is not None:
        assert curve[found] >= target
        assert first_hit(curve, target) <= found
        assert _hit_of_the_first_version(curve, target) <= found
        assert lower is not None
        assert lower <= found


# Targets


def test_a_target_is_a_share_of_the_converged_accuracy_and_not_of_a_lucky_best():
    """Nine evaluations of 0.80 and a lucky 0.96: their mean is 0.816; 95% of it is 0.775, and not 0.912."""
    curve = [0.1] + [0.5] * 20 + [0.8] * 4 + [0.96] + [0.8] * 5
    assert converged(curve) == pytest.approx(0.816)
    assert resolve("95%-of-converged", converged(curve), None) == pytest.approx(0.7752)


def test_the_start_is_no_federated_round_of_a_short_run():
    assert converged([0.1, 0.5, 0.7]) == pytest.approx(0.6)
    assert converged([0.1]) == pytest.approx(0.1)
    assert converged([0.0] + [0.5] * 9) == pytest.approx(0.5)


def test_a_share_of_the_gain_begins_at_the_largest_class():
    """A table of 80% of one class, and 90% right: half of the gain is 85%, where half of 90% is nothing."""
    assert resolve("50%-of-gain", 0.9, 0.8) == pytest.approx(0.85)
    assert resolve("50%-of-gain", 0.79, 0.8) == 2
    assert resolve("50%-of-gain", 0.9, None) is None


def test_a_failed_baseline_leaves_relative_targets_unresolved():
    assert resolve("95%-of-converged", None, None) is None
    assert resolve("0.9", None, None) == 0.9


# Plateaus


def _plateau_of_the_first_version(curve: list[float], rounds: int, min_delta: float) -> int | None:
    rises = (max(curve[: r + rounds + 1]) - max(curve[: r + 1]) for r in range(len(curve) - rounds))
    return next((r for r, rise in enumerate(rises) if rise <= min_delta + 1e-9), None)


def test_one_lucky_evaluation_makes_no_plateau():
    """A curve that rises by a point a round from 0.10 to 0.90 at round 80, with 0.50 at round 3.

    The best accuracy is the same at rounds 3 and 23. Best five-round means: round 4 has 0.194, round 24 0.32.
    Those of rounds 81 to 84 are 0.888, 0.894, 0.898 and 0.900, and none is higher, so the curve is flat once
    r - max(20, r // 2) >= 83, first at r = 165; with twice the tolerance at 82 and 163.
    """
    curve = [min(0.9, 0.1 + r / 100) for r in range(200)]
    curve[3] = 0.5
    assert _plateau_of_the_first_version(curve, 20, 0.005) == 3
    assert plateau(curve) == 165
    assert plateau(curve, min_delta=0.0025) == 165
    assert plateau(curve, min_delta=0.01) == 163
    assert plateau(curve[:165]) is None


def test_a_flat_curve_is_flat_once_that_can_be_known():
    """Five-round means begin at round 4, and 20 rounds later is 24."""
    assert plateau([0.5] * 25) == 24
    assert plateau([0.5] * 24) is None


@given(CURVES.map(lambda curve: curve * 3), st.floats(0, 0.1))
def test_a_larger_tolerance_never_flattens_a_curve_later(curve, min_delta):
    strict, loose = plateau(curve, 5, min_delta), plateau(curve, 5, 2 * min_delta)
    assert strict is None or (loose is not None and loose <= strict)


# Statistics of a cell


def _t_interval(saved: list[float]) -> tuple[float, float]:
    mean, n = statistics.fmean(saved), len(saved)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(saved) / math.sqrt(n)
    return mean - half, mean + half


def test_three_seeds_give_points_where_a_t_interval_went_beyond_everything():
    """Savings of 10, 50 and 90%: 50 +- 4.303 * 40 / sqrt(3) is [-49, 149]; nobody saves 149%."""
    assert _t_interval([10, 50, 90]) == pytest.approx((-49.4, 149.4), abs=0.1)
    assert _t_interval([75, 75, 75]) == (75, 75)
    for arms in ([9, 5, 1], [2.5, 2.5, 2.5]):
        found = compare([(10, arm) for arm in arms])
        assert (found["saved_percent"]["low"], found["saved_percent"]["high"]) == (None, None)
        assert (found["ratio"]["low"], found["ratio"]["high"], found["p_value"]) == (None, None, None)
        assert found["saved_percent"]["median"] == pytest.approx(100 - 10 * arms[1])


def test_an_arm_that_never_gets_there_is_not_billed_one_round_more_than_the_horizon():
    """Horizon 12, baseline 12 rounds: "13 rounds" was a loss of 8% whatever the arm would have needed.

    In two of ten seeds the arm gets nowhere, in eight it takes 6 rounds for 12. The mean saving was
    (8 * 50 - 2 * 8.3) / 10 = 38.3%, with an interval above 0. The 9th of ten log-ratios is infinite: nothing
    is known of the low end.
    """
    low, _ = _t_interval([50] * 8 + [100 * (1 - 13 / 12)] * 2)
    assert low > 0
    found = compare([(12, 6)] * 8 + [(12, None)] * 2)
    assert found["saved_percent"] == {"median": 50, "low": None, "high": 50}
    assert found["ratio"] is None
    assert found["censored"] == {"baseline": 0, "arm": 2, "both": 0}
    assert verdict([(12, 6)] * 8 + [(12, None)] * 2, True, 0.0) == "undecided"


def test_a_seed_in_which_only_the_baseline_misses_counts_for_the_arm():
    """Three seeds in which the arm loses 20%, four in which it alone gets there: these were dropped."""
    pairs: Pairs = [(10, 12)] * 3 + [(None, 12)] * 4
    kept = [100 * (1 - arm / baseline) for baseline, arm in pairs if baseline]
    assert statistics.fmean(kept) == pytest.approx(-20)
    found = compare(pairs)
    assert (found["pairs"], found["censored"]["baseline"]) == (7, 4)
    assert found["saved_percent"] == {"median": 100, "low": pytest.approx(-20), "high": 100}


def test_as_many_misses_of_one_side_as_of_the_other_are_no_saving():
    found = compare([(10, None)] * 3 + [(None, 5)] * 3)
    assert found["saved_percent"] == {"median": None, "low": None, "high": 100}


def test_a_cell_of_nothing_but_misses_says_nothing():
    found = compare([(None, None)] * 7)
    assert (found["saved_percent"], found["ratio"], found["p_value"]) == (None, None, 1)
    assert (found["pairs"], found["censored"]["both"]) == (7, 7)
    assert verdict([(None, None)] * 7, False, 0.0) == "undecided"
    assert compare([])["saved_percent"] is None


def test_a_cost_of_nothing_is_a_point_without_an_interval():
    """Savings of 50% five times and of 100% once; of a baseline that paid nothing there is none."""
    found = compare([(10, 0), *[(10, 5)] * 5, (None, 3)])
    assert found["saved_percent"] == {"median": 50, "low": None, "high": None}
    assert (found["ratio"], found["p_value"]) == (None, None)
    assert compare([(0, 4), *[(10, 5)] * 6])["saved_percent"] is None
    assert verdict([(0, 4), *[(10, 5)] * 6], True, 0.0) is None
    assert verdict([(10, 0), *[(10, 5)] * 6], True, 0.0) is None


def test_ten_seeds_use_the_second_and_the_ninth_log_ratio():
    """P(at most one head in ten tosses) = 11 / 1024, so that [2nd, 9th] covers 1 - 22 / 1024 = 97.9%."""
    arms = [1, 2, 3, 4, 5, 6, 7, 8, 9, 20]
    found = compare([(10, arm) for arm in arms])
    assert found["saved_percent"] == pytest.approx({"median": 100 - 10 * 30**0.5, "low": 10, "high": 80})
    assert found["p_value"] == pytest.approx(22 / 1024)


@pytest.mark.parametrize("n", range(1, 41))
def test_ranks_are_the_largest_that_still_cover(n):
    def covers(k, sides):
        return 1 - sides * stats.binom.cdf(k - 1, n, 0.5) >= 0.95

    for rank, sides in ((two_sided_rank(n), 2), (one_sided_rank(n), 1)):
        assert rank is None or covers(rank, sides)
        assert not covers((rank or 0) + 1, sides)
    assert (two_sided_rank(n) is None) == (n < 6)


def test_the_sign_test_is_scipys():
    pairs = [(10, 5)] * 7 + [(10, 12), (10, 10), (None, 3), (10, None)]
    ratios = [log_ratio(*pair) for pair in pairs]
    assert sign_test(ratios) == pytest.approx(stats.binomtest(8, 10).pvalue)
    assert sign_test([*ratios, None, None]) == pytest.approx(stats.binomtest(8, 12).pvalue)
    assert sign_test([0.0] * 6) == 1


def test_holm_stops_at_the_first_that_is_too_large():
    """0.01 and 0.015 are below 0.05 / 4 and 0.05 / 3, 0.03 is above 0.05 / 2, so that 0.04 fails as well."""
    assert holm([0.04, 0.01, 0.03, 0.015]) == [False, True, False, True]
    assert holm([0.05]) == [True]
    assert holm([]) == []


def test_the_three_verdicts():
    """Costs of ten pairs; one-sided, the 2nd largest of ten bounds the median."""
    saves = [(10, 5)] * 9 + [(10, 20)]
    assert verdict(saves, True, 0.1) == "saves"
    assert verdict(saves, False, 0.1) == "undecided"
    assert verdict(saves, False, 0.005) == "does-not-lose"
    assert verdict([(100, 114)] * 9 + [(100, 900)], False, 0.0) == "does-not-lose"
    assert verdict([(100, 115)] * 10, False, 0.0) == "undecided"
    assert verdict([(100, 114)] * 10, False, 0.0051) == "undecided"
    assert verdict([(100, 114)] * 10, False, None) == "undecided"
    assert verdict([(10, 20)] * 10, True, 0.0) == "undecided"
    assert verdict([(10, 5)] * 5, True, 0.0) is None


COST = st.none() | st.integers(1, 60)
PAIRS = st.lists(st.tuples(COST, COST), max_size=14)


@given(PAIRS)
def test_a_pair_in_which_both_miss_never_narrows_the_interval_nor_helps(pairs):
    ratios = [log_ratio(*pair) for pair in pairs]
    before, after = ends(ratios), ends([*ratios, None])
    if before is not None:
        assert after[0] <= before[0]
        assert after[1] >= before[1]
    assert sign_test([*ratios, None]) >= sign_test(ratios)
    median, widened = (compare(some)["saved_percent"] for some in (pairs, [*pairs, (None, None)]))
    assert (median or {}).get("median") == (widened or {}).get("median")


@given(PAIRS)
def test_swapping_the_arms_mirrors_every_sign(pairs):
    ratios = [log_ratio(*pair) for pair in pairs]
    mirrored = [log_ratio(arm, baseline) for baseline, arm in pairs]
    assert mirrored == pytest.approx([None if d is None else -d for d in ratios])
    interval = ends(ratios)
    if interval is not None:
        assert ends(mirrored) == pytest.approx((-interval[1], -interval[0]))
    there, back = compare(pairs), compare([(arm, baseline) for baseline, arm in pairs])
    assert there["p_value"] == back["p_value"]
    if there["ratio"] is not None:
        assert there["ratio"]["geometric_mean"] * back["ratio"]["geometric_mean"] == pytest.approx(1)
    assert there["censored"]["arm"] == back["censored"]["baseline"]


@given(PAIRS)
def test_nobody_saves_more_than_everything_and_the_median_is_inside_its_interval(pairs):
    saved = compare(pairs)["saved_percent"]
    if saved is not None:
        low, middle, high = (-math.inf if saved[k] is None else saved[k] for k in ("low", "median", "high"))
        assert middle <= 100
        if len(pairs) >= 6:
            assert low - 1e-9 <= middle <= high + 1e-9 or saved["median"] is None
            assert high <= 100


@given(PAIRS, st.integers(1, 60))
def test_an_arm_that_gets_dearer_in_one_seed_never_looks_better(pairs, cost):
    if not pairs:
        return
    baseline, arm = pairs[0]
    dearer = None if arm is None else arm + cost
    ratios, worse = (
        [log_ratio(*pair) for pair in (one, *pairs[1:])] for one in (pairs[0], (baseline, dearer))
    )
    if ends(ratios) is not None:
        for better, now in zip(ends(ratios), ends(worse), strict=True):
            assert now >= better
    gone = [log_ratio(*pair) for pair in ((baseline, None), *pairs[1:])]
    if ends(ratios) is not None:
        assert ends(gone)[1] >= ends(ratios)[1]


# Run folders

REFITS = [
    Refit("before-teachers", "lda", why="nobody answered"),
    Refit(2, "ridge", 5, 280, 3.16, "penalty: gcv", 12.5, "calibrate: sums"),
]
"""What the warm arm records of its head."""


def _record(arm: str, seed: int, round: int, accuracy: float, **costs: Any) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "round": round,
        "exchanges": round,
        "phase": "rounds" if round else "start",
        "accuracy": accuracy,
        "test_accuracy": accuracy,
        "loss": 1.0,
        "participant_uploads": 5 * round,
        "bytes_up": 100 * round,
        "bytes_down": 100 * round,
        "local_steps": 50 * round,
        "answered": 5,
        "absent": [],
        "seconds": float(round),
        **costs,
    }


def _write(folder: Path, curves: dict[tuple[str, int], list[float]], **stopped: str) -> Path:
    """Write a run folder of hand-made curves: cold, warm (its start costs one exchange) and averaged."""
    folder.mkdir(exist_ok=True)
    seeds = sorted({seed for _, seed in curves})
    experiment = {
        "name": "by-hand",
        "seeds": seeds,
        "data": {"task": "classification"},
        "rounds": {"horizon": 5, "why": "", "plateau": {"rounds": 20, "min-delta": 0.005}},
        "targets": [0.8, "50%-of-converged"],
        "controls": ["averaged"],
        "arms": {"cold": {}, "warm": {}, "averaged": {}},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    rows, outcomes = [], []
    for (arm, seed), curve in curves.items():
        extra = 1 if arm == "warm" else 0
        rows += [_record(arm, seed, r, accuracy, exchanges=r + extra) for r, accuracy in enumerate(curve)]
        how = stopped.get(f"{arm}_{seed}", "horizon")
        if how != "failed":
            outcome = {
                "arm": arm,
                "seed": seed,
                "stopped": how,
                "weights_sha256": "ab",
                "consolidation": None,
                "refits": [asdict(refit) for refit in REFITS] if arm == "warm" else [],
            }
            outcomes.append(outcome)
    for name, lines in (("rounds", rows), ("outcomes", outcomes)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


COLD = [0.1, 0.3, 0.6, 0.8, 0.9, 0.9]
WARM = [0.7, 0.8, 0.9, 0.9, 0.9, 0.9]
FREE = [0.9] * 6
NEVER = [0.1] * 6


def _cell(counted: dict[str, Any], arm: str, target: str, cost: str) -> dict[str, Any]:
    found = [c for c in counted["comparisons"] if (c["arm"], c["target"], c["cost"]) == (arm, target, cost)]
    assert len(found) == 1
    return found[0]


def test_a_folder_is_counted_from_its_records(tmp_path):
    """At 0.8 the cold arm hits in round 3, the warm one in round 1, which are 2 exchanges with its teachers'.

    Its converged accuracy is (0.3 + 0.6 + 0.8 + 0.9 + 0.9) / 5 = 0.7: 50% is 0.35, 99% is 0.693. Nobody hits
    0.8 at the start but the averaged arm, at no exchange. The cold arm reaches 0.693 in round 3, the warm one
    at the start, which counts as one round of three.
    """
    curves = {
        (arm, s): c for s in range(6) for arm, c in (("cold", COLD), ("warm", WARM), ("averaged", FREE))
    }
    counted = recount.recount(_write(tmp_path / "run", curves))
    assert counted["targets"] == ["0.8", "50%-of-converged", "99%-of-converged"]
    runs = {(run["arm"], run["target"]): run for run in counted["runs"] if run["seed"] == 0}
    cold, warm = runs["cold", "0.8"], runs["warm", "0.8"]
    assert (cold["rounds_to_target"], cold["exchanges_to_target"], cold["hit"]["accuracy"]) == (3, 3, 0.8)
    assert (warm["rounds_to_target"], warm["exchanges_to_target"]) == (1, 2)
    assert (cold["rounds_to_convergence"], warm["rounds_to_convergence"]) == (3, 0)
    assert cold["converged_accuracy"] == pytest.approx(0.7)
    assert runs["cold", "50%-of-converged"]["target_accuracy"] == pytest.approx(0.35)

    exchanges = _cell(counted, "warm", "0.8", "exchanges")
    third = pytest.approx(100 / 3)
    assert exchanges["saved_percent"] == {"median": third, "low": third, "high": third}
    assert (exchanges["pairs"], exchanges["p_value"], exchanges["verdict"]) == (6, 2 / 64, "does-not-lose")
    assert exchanges["ceiling_percent"] == pytest.approx(200 / 3)
    to_convergence = _cell(counted, "warm", "99%-of-converged", "rounds_to_convergence")
    assert to_convergence["saved_percent"]["median"] == pytest.approx(200 / 3)
    assert to_convergence["verdict"] == "saves"
    free = _cell(counted, "averaged", "0.8", "exchanges")
    assert (free["without_federation"], free["pairs"], free["saved_percent"]) == (6, 0, None)
    assert counted["controls"]["averaged"]["start_accuracy"] == pytest.approx(0.9)
    assert counted["controls"]["server_alone"]["arm"] is None


def test_seeds_that_say_nothing_are_left_out_and_counted(tmp_path):
    """The cold arm failed in seed 0 after its hit, and missed in 2; the warm one ended early in seed 1."""
    curves = {
        (arm, s): c for s in range(4) for arm, c in (("cold", COLD), ("warm", WARM), ("averaged", FREE))
    }
    curves[("warm", 1)] = NEVER[:3]
    curves[("cold", 2)] = NEVER
    counted = recount.recount(_write(tmp_path / "run", curves, cold_0="failed", warm_1="listener"))
    cell = _cell(counted, "warm", "0.8", "rounds")
    assert (cell["pairs"], cell["failed"]) == (2, 2)
    assert cell["censored"] == {"baseline": 1, "arm": 0, "both": 0}
    unresolved = [run for run in counted["runs"] if run["seed"] == 0 and run["target"] != "0.8"]
    assert {run["target_accuracy"] for run in unresolved} == {None}
    absolute = [run for run in counted["runs"] if run["seed"] == 0 and run["target"] == "0.8"]
    assert [run["rounds_to_target"] for run in absolute] == [3, 1, 0]


def test_every_changed_figure_is_found_and_named(tmp_path, capsys):
    folder = _write(tmp_path / "run", {("cold", 0): COLD, ("warm", 0): WARM, ("averaged", 0): FREE})
    counted = recount.recount(folder)
    summary = json.loads(json.dumps(counted))
    paths = list(_figures(summary))
    assert len(paths) > 500
    for path in paths:
        *inside, key = path
        holder = reduce(lambda value, step: value[step], inside, summary)
        before = holder[key]
        holder[key] = before + 1 if isinstance(before, int | float) else 7
        assert disagreements(summary, counted), path
        holder[key] = before
    (folder / "summary.json").write_text(json.dumps(summary))
    assert recount.main([str(folder)]) == 0
    assert "agrees" in capsys.readouterr().out
    summary["runs"][0]["hit"]["accuracy"] = 0.65
    (folder / "summary.json").write_text(json.dumps(summary))
    assert recount.main([str(folder)]) == 1
    assert "runs[cold, 0, 0.8].hit.accuracy: summary 0.65, recount 0.8" in capsys.readouterr().out


def _figures(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield from _figures(inside, (*path, key))
    if not isinstance(value, dict | list):
        yield path


def test_missing_repeated_and_unknown_entries_are_found(tmp_path):
    folder = _write(tmp_path / "run", {("cold", 0): COLD, ("warm", 0): WARM, ("averaged", 0): FREE})
    counted = recount.recount(folder)
    for change in (
        {"runs": counted["runs"][1:]},
        {"runs": [*counted["runs"], counted["runs"][0]]},
        {"comparisons": [*counted["comparisons"], {**counted["comparisons"][0], "cost": "patience"}]},
        {"saved": 72},
        {"schema": 1},
    ):
        assert disagreements(counted | change, counted)
    assert not disagreements(counted, counted)


def test_the_recount_needs_nothing_of_kdfed(tmp_path):
    tree = ast.parse(Path(recount.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"kdfed", "simulations", "strategies", "clients"}
    folder = _write(tmp_path / "run", {("cold", 0): COLD, ("warm", 0): WARM, ("averaged", 0): FREE})
    summary = recount.recount(folder)
    summary["comparisons"][0]["pairs"] = 9
    (folder / "summary.json").write_text(json.dumps(summary))
    done = subprocess.run(
        [sys.executable, recount.__file__, folder], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "pairs: summary 9, recount 1" in done.stdout, done.stderr


# Against kdfed


EXPERIMENT: dict[str, Any] = {
    "name": "recounted",
    "seeds": [0, 1, 2, 3, 4, 5],
    "device": "cpu",
    "data": {"source": "digits", "limit": 600},
    "partition": {"kind": "dirichlet", "alpha": 0.3, "participants": 5, "min-examples": 4},
    "model": {"name": "mlp", "options": {"hidden": [16]}},
    "local": {"mode": "plain", "epochs": 1, "batch-size": 16, "lr": 0.1},
    "teachers": {"epochs": 4, "batch-size": 16, "lr": 0.1},
    "consolidation": {"epochs": 10, "batch-size": 16},
    "server": {"strategy": "fedavg", "cohort-size": 5},
    "rounds": {"horizon": 12, "plateau": {"rounds": 4, "min-delta": 0.2}},
    "targets": [0.5, "90%-of-converged", "80%-of-gain"],
    "controls": ["averaged"],
    "arms": {"cold": {}, "consolidated": {"start": "consolidated"}},
}


def test_what_became_of_heads_is_counted_from_the_outcomes(tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.report.build_report", lambda folder: None)
    solved = {"closed-form": {"calibrate": "sums", "at": [0, 2]}}
    arms = {"arms": {"cold": {}, "solved": solved}}
    experiment = build_experiment(
        {**EXPERIMENT, **arms, "seeds": [0, 1], "rounds": {"horizon": 2}, "controls": []}
    )
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    summary = run_experiment(InProcessGrid(app, 1), experiment, folder, "inprocess")
    assert recount.check(tmp_path / "run") == []
    found = [(refit["arm"], refit["seed"], refit["at"]) for refit in summary["refits"]]
    assert found == [("solved", 0, 0), ("solved", 0, 2), ("solved", 1, 0), ("solved", 1, 2)]
    assert {refit["chosen_by"] for refit in summary["refits"]} == {"penalty: gcv"}
    assert all(refit["scale"] > 1 for refit in summary["refits"])
    read = folder.read_summary(experiment, folder.read_rounds(experiment))
    assert read["refits"] == summary["refits"]
    other = {**summary, "refits": [*summary["refits"][:3], {**summary["refits"][3], "chosen": 7.0}]}
    (told,) = recount.check(tmp_path / "run", other)
    assert told.startswith("refits[solved, 1, 2].chosen: summary 7.0")


@pytest.mark.slow
def test_the_recount_agrees_with_a_real_run_entirely(tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.report.build_report", lambda folder: None)
    experiment = build_experiment(EXPERIMENT)
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    summary = run_experiment(InProcessGrid(app, 1), experiment, folder, "inprocess")
    assert recount.check(tmp_path / "run") == []
    assert {run["arm"] for run in summary["runs"]} == {"cold", "consolidated", "averaged"}
    assert any(comparison["verdict"] is not None for comparison in summary["comparisons"])
    assert any(run["plateau"] is not None for run in summary["runs"])


def _recorded(draw: random.Random, horizon: int) -> tuple[list[RoundRecord], list[Outcome]]:
    """Make up what four arms recorded in up to ten seeds: some fail, some end early, some cost nothing."""
    records, outcomes = [], []
    seeds, troubled, free = draw.choice([1, 3, 6, 7, 10]), draw.random() < 0.5, draw.random() < 0.2
    for arm in ("cold", "consolidated", "other", "averaged"):
        speed, teachers = draw.choice([0.02, 0.1, 0.3]), draw.choice([0, 1])
        for seed in range(seeds):
            end = draw.choice(["horizon"] * 6 + ["failed", "listener", "missing"]) if troubled else "horizon"
            rounds = horizon if end == "horizon" else draw.randint(0, horizon)
            accuracy, steps = draw.choice([0.1, 0.3, 0.6]), teachers * draw.randint(1, 99)
            for r in range(0 if end == "missing" else rounds + 1):
                record = _record(arm, seed, r, round(min(1.0, max(0.0, accuracy)), 2))
                costs = {"exchanges": r + teachers, "local_steps": 0 if free else steps, "absent": ()}
                records.append(RoundRecord(**(record | costs)))
                accuracy += draw.uniform(-0.1, 0.1 + speed)
                steps += draw.choice([50, 60])
            if end in ("horizon", "listener"):
                outcomes.append(Outcome(arm, seed, end, f"{seed:x}", {"steps": 3} if teachers else None))
    return records, outcomes


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_the_recount_agrees_with_whatever_runs_recorded(number):
    draw = random.Random(number)
    records, outcomes = _recorded(draw, horizon=draw.choice([1, 4, 12]))
    arms = {**EXPERIMENT["arms"], "other": {"local": {"epochs": 2}}}
    changes = {
        "seeds": sorted({record.seed for record in records}) or [0],
        "rounds.horizon": max((record.round for record in records), default=0),
        "controls": draw.choice([[], ["averaged"]]),
        "arms": {**arms, "averaged": {"start": "averaged"}},
    }
    experiment = build_experiment(merge(EXPERIMENT, changes))
    facts = DataFacts(evaluation_examples=100, majority=0.3, server_labels=0, control_labels=50)
    summary = summarise(experiment, "inprocess", records, outcomes, facts=facts)
    with TemporaryDirectory() as folder:
        (Path(folder) / "experiment.yaml").write_text(experiment.to_yaml())
        for name, lines in (("rounds", records), ("outcomes", outcomes)):
            text = "".join(line.to_json() + "\n" for line in lines)
            (Path(folder) / f"{name}.jsonl").write_text(text, encoding="utf-8")
        assert recount.check(Path(folder), summary) == []
