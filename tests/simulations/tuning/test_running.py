"""Halving, equal trials, resumption, and what is written. Trials are worked curves, run in this process."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdfed.config.document import parse
from kdfed.errors import RunError
from simulations.cli import main
from simulations.experiments import load_experiment
from simulations.tuning import load_tuning, run_tuning
from simulations.tuning import running as module
from simulations.tuning.objective import Curve
from simulations.tuning.running import Trial
from simulations.tuning.trial import TrialResult
from tests.simulations.tuning.test_checks import written

TUNING: dict[str, Any] = {
    "seeds": [100, 101],
    "trials": 5,
    "rungs": [4, 12],
    "longest": 40,
    "arms": {
        "cold": {
            "local.lr": [0.05, 0.1, 0.2, 0.4],
            "server": [{"strategy": "fedavg"}, {"strategy": "fedavgm", "server-momentum": 0.5}],
        },
        "consolidated": {"consolidation.lr": [0.05, 0.2, 0.3, 0.4, 0.6, 0.7]},
    },
    "by-hand": {"consolidated": 2},
}


def speed(trial: Trial) -> float:
    """Return how fast a candidate learns: cold by its rate, warm by that of its consolidation."""
    arm = trial._read().arm(trial.name)
    return arm.local.lr * (2 if arm.server.strategy == "fedavgm" else 1) + (
        arm.consolidation.lr if trial.name == "consolidated" else 0
    )


def worked(trial: Trial) -> TrialResult:
    """Return a curve that rises to 0.9 by a tenth of the speed a round; 0.8, twice the rate, diverges."""
    if trial.name == "cold" and speed(trial) > 0.7:
        return TrialResult(None, "rounds: round 1: expected a finite model")
    rounds = range(trial.rounds + 1)
    accuracies = tuple(min(0.9, 0.1 + speed(trial) * r / 2) for r in rounds)
    return TrialResult(Curve(accuracies, tuple(r + (trial.name != "cold") for r in rounds)), seconds=1.0)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Run trials in this process as worked curves, and return those that were run."""
    done: list[Trial] = []

    @contextmanager
    def pool(*_: Any) -> Iterator[None]:
        yield

    def run_all(pool: None, job: Callable[..., Any], arguments: Any, done: Callable[..., None]) -> None:
        for own in arguments:
            done(own, job(*own))

    def run(trial: Trial) -> TrialResult:
        done.append(trial)
        return worked(trial)

    monkeypatch.setattr(module, "worker_pool", pool)
    monkeypatch.setattr(module, "run_all", run_all)
    monkeypatch.setattr(Trial, "run", run)
    return done


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_quickest_candidate_wins_and_its_settings_are_shared(tmp_path, ran):
    """Of the cold arm 2 x 0.2 and 0.4 are quickest at speed 0.4; 2 x 0.4 diverges and comes last."""
    plan = load_tuning(written(tmp_path, TUNING))
    winners = run_tuning(plan, tmp_path / "out", command="kdfed tune tiny.yaml")
    cold, warm = winners
    tuned = load_experiment(tmp_path / "out" / "tuned.yaml")
    assert (cold.arm, warm.arm) == ("cold", "consolidated")
    rows = rows_of(tmp_path / "out")
    tried = {row["settings"] for row in rows if row["arm"] == "cold"}
    best = max(speed(t) for t in ran if t.name == "cold" and t.rounds == 4 and speed(t) < 0.7)
    assert speed(next(t for t in reversed(ran) if t.name == "cold")) == best
    assert len(tried) == 7
    arms = {name: tuned.arm(name) for name in ("cold", "consolidated")}
    assert arms["cold"].local == arms["consolidated"].local
    assert arms["cold"].server == arms["consolidated"].server
    assert arms["cold"].local.lr * (2 if arms["cold"].server.strategy == "fedavgm" else 1) == best
    quickest = max(t._read().arm("consolidated").consolidation.lr for t in ran if t.name == "consolidated")
    assert arms["consolidated"].consolidation.lr == quickest


@pytest.mark.slow
def test_both_sides_get_as_many_trials_those_by_hand_included(tmp_path, ran):
    run_tuning(load_tuning(written(tmp_path, TUNING)), tmp_path / "out")
    first = [row for row in rows_of(tmp_path / "out") if row["rung"] == "1"]
    counts = {
        arm: len({r["candidate"] for r in first if r["arm"] == arm}) for arm in ("cold", "consolidated")
    }
    assert counts == {"cold": 7, "consolidated": 5}
    assert {row["seed"] for row in first} == {"100", "101"}


@pytest.mark.slow
def test_nobody_gets_more_trials_than_the_baselines_space_has_points(tmp_path, ran):
    """Three points: two rates, and the one that stands there."""
    spaces = {**TUNING["arms"], "cold": {"local.lr": [0.05, 0.2]}}
    plan = load_tuning(written(tmp_path, {**TUNING, "arms": spaces}))
    cold, warm = run_tuning(plan, tmp_path / "out")
    assert (cold.trials, warm.trials) == (3, 1)


@pytest.mark.slow
def test_a_candidate_that_fails_is_recorded_with_its_reason_and_goes_no_further(tmp_path, ran):
    run_tuning(load_tuning(written(tmp_path, {**TUNING, "trials": 8})), tmp_path / "out")
    failed = [row for row in rows_of(tmp_path / "out") if row["reason"]]
    assert {row["rung"] for row in failed} == {"1"}
    assert {(row["kept"], row["converged_accuracy"]) for row in failed} == {("no", "")}
    assert failed[0]["reason"].endswith("expected a finite model")


def test_an_arm_of_which_every_candidate_fails_ends_it(tmp_path, ran):
    spaces = {**TUNING["arms"], "cold": {"local.lr": [0.8]}}
    plan = load_tuning(written(tmp_path, {**TUNING, "arms": spaces, "by-hand": {}}, local__lr=0.9))
    with pytest.raises(RunError, match=r"every candidate of 'cold' failed; the first: rounds: round 1"):
        run_tuning(plan, tmp_path / "out")


@pytest.mark.slow
def test_a_share_goes_on_to_the_next_rung(tmp_path, ran):
    """Of 7 cold candidates a third, 2; the last rung has one winner."""
    run_tuning(load_tuning(written(tmp_path, TUNING)), tmp_path / "out")
    rows = [row for row in rows_of(tmp_path / "out") if row["arm"] == "cold" and row["seed"] == "100"]
    assert [sum(r["rung"] == rung for r in rows) for rung in ("1", "2")] == [7, 2]
    assert [sum(r["rung"] == rung and r["kept"] == "yes" for r in rows) for rung in ("1", "2")] == [2, 1]


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_where_it_stopped(tmp_path, ran, monkeypatch):
    plan, out = load_tuning(written(tmp_path, TUNING)), tmp_path / "out"
    run_tuning(plan, tmp_path / "whole")
    everything = [trial.key for trial in ran]
    ran.clear()
    run = Trial.run

    def killed(trial: Trial) -> TrialResult:
        if len(ran) == 9:
            raise KeyboardInterrupt
        return run(trial)

    monkeypatch.setattr(Trial, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run_tuning(plan, out)
    monkeypatch.setattr(Trial, "run", run)
    run_tuning(plan, out)
    assert [trial.key for trial in ran] == everything, "nothing twice, and nothing is left out"
    for name in ("trials.csv", "tuned.yaml"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_what_failed_by_accident_is_tried_again(tmp_path, ran, monkeypatch):
    plan, out = load_tuning(written(tmp_path, TUNING)), tmp_path / "out"
    good = Trial.run

    def unlucky(trial: Trial) -> TrialResult:
        return TrialResult(None, "OSError: no space", lasting=False) if trial.name != "cold" else good(trial)

    monkeypatch.setattr(Trial, "run", unlucky)
    with pytest.raises(RunError, match="no space"):
        run_tuning(plan, out)
    monkeypatch.setattr(Trial, "run", good)
    ran.clear()
    run_tuning(plan, out)
    assert {trial.name for trial in ran if trial.until is None} == {"consolidated"}


@pytest.mark.slow
def test_the_tuned_experiment_says_where_it_comes_from(tmp_path, ran):
    plan = load_tuning(written(tmp_path, {**TUNING, "seeds": [100, 102]}, controls=["longer"]))
    run_tuning(plan, tmp_path / "out", command="kdfed tune tiny.yaml")
    text = (tmp_path / "out" / "tuned.yaml").read_text()
    assert text.startswith("# tiny, tuned by kdfed ")
    assert "kdfed tune tiny.yaml\n# Tuning seeds 100, 102" in text
    assert "5 trials and 2 by hand" in text
    values = parse(text)
    assert values["rounds"]["why"].startswith("1.5 times ")
    assert "on tuning seeds 100, 102" in values["rounds"]["why"]
    assert values["seeds"] == [3]
    assert list(values["arms"]) == ["cold", "consolidated"], "controls are made anew for the tuned arms"


@pytest.mark.slow
def test_a_search_is_run_by_the_command_and_what_it_writes_can_be_run(tmp_path, monkeypatch, capsys):
    """Two real rungs in worker processes, then two rounds of the tuned experiment."""
    monkeypatch.chdir(tmp_path)
    tuning = {
        "seeds": [100],
        "trials": 2,
        "rungs": [2, 3],
        "longest": 3,
        "arms": {"cold": {"local.lr": [0.2]}, "consolidated": {"consolidation.temperature": [1.0]}},
    }
    written(tmp_path, tuning)
    words = ["tune", "experiment.yaml", "--set", "server.cohort-size=4", "--workers", "1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "horizon: 5 rounds" in printed
    folder = tmp_path / "runs" / "tiny-tuning"
    assert "--set server.cohort-size=4" in (folder / "tuned.yaml").read_text()
    assert (
        main(["run", str(folder / "tuned.yaml"), "--engine", "inprocess", "--set", "rounds.horizon=2"]) == 0
    )


def test_mistakes_end_the_command_before_anything_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"arms": {"cold": {"local.lrr": [0.2]}}})
    assert main(["tune", "experiment.yaml"]) == 2
    assert "tuning.arms.cold.local.lrr: unknown key; did you mean 'lr'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
