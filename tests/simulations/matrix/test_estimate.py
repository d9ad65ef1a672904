"""How long jobs take: by records, by local steps, and by a timed round."""

from __future__ import annotations

import pytest

from kdfed.records import Outcome
from simulations.matrix import estimate, load_matrix
from simulations.matrix.estimate import Estimate, kept, measured, remaining, steps_of_start, time_cell
from simulations.matrix.jobs import CellState, Job, Note
from tests.simulations.matrix.matrices import recorded, run_of, written


def test_recorded_jobs_are_averaged_and_what_is_finished_is_not_counted_again(tmp_path):
    """Worked curves of 20 rounds take 20 seconds; another seed, of which cold is done, took 30 for it. Of the
    first seed's 40 seconds 10 were spent on a CPU."""
    matrix, _ = recorded(tmp_path, {"a": {"cold": [10, 10], "warm": [4, 4]}})
    (cell,) = matrix.cells
    whole = [Outcome(arm, 0, "horizon", "") for arm in ("cold", "warm")]
    records = (*run_of("cold", 0, 10, 20), *run_of("warm", 0, 4, 20))
    half = Job(cell, 1, "begun", tuple(run_of("cold", 1, 10, 30)), (Outcome("cold", 1, "horizon", ""),))
    state = CellState(cell, {0: Job(cell, 0, "done", records, tuple(whole)), 1: half})
    found = measured(state, {"a/0": Note("abc", 10.0), "a/1": Note("abc", 99.0)})
    assert found == Estimate({"cold": 25.0, "warm": 20.0}, 1, 0.25)
    assert (remaining(state, found, 0), remaining(state, found, 1)) == (0.0, 20.0)
    assert found.job == 45.0
    assert measured(state, {}) == Estimate({"cold": 25.0, "warm": 20.0}, 1, None)
    assert measured(CellState(cell, {0: Job(cell, 0), 1: half}), {}) is None


def test_an_estimate_is_kept_for_the_same_experiment_whatever_its_seeds(tmp_path):
    (cell, _) = load_matrix(written(tmp_path)).cells
    assert kept(tmp_path, cell) is None
    made = Estimate({"cold": 1.5, "warm": 2.0}, 0, 0.9)
    estimate.keep(tmp_path, cell, made)
    assert kept(tmp_path, cell) == made
    (more, _) = load_matrix(written(tmp_path, base__seeds=[1, 2, 3])).cells
    (other, _) = load_matrix(written(tmp_path, base__local__epochs=2)).cells
    assert kept(tmp_path, more) == made
    assert kept(tmp_path, other) is None


def test_a_start_costs_local_steps_by_its_examples(tmp_path):
    """Of 400 digits 220 are dealt, 40 are the transfer split. Teachers: 220 examples once; the student: 40
    twice, and 4 teachers asked once at a third: 220 + 80 + 53.3 examples are 44.2 steps of 8."""
    (cell, _) = load_matrix(written(tmp_path)).cells
    cold, warm = (steps_of_start(cell.experiment, cell.experiment.arm(arm)) for arm in ("cold", "warm"))
    assert cold == 0
    assert warm == pytest.approx((220 + 40 * 2 + 40 * 4 / 3) / 8)


def test_a_round_of_each_arm_is_timed_and_stands_for_all(tmp_path, monkeypatch):
    """A round of 2 seconds and 20 steps, 1 second before: three rounds and 44.2 steps of 0.1 seconds."""
    monkeypatch.setattr(estimate, "time_round", lambda experiment, arm: estimate.Timed(1.0, 2.0, 20))
    (cell, _) = load_matrix(written(tmp_path)).cells
    found = time_cell(cell.experiment)
    assert found.arms == {"cold": pytest.approx(7.0), "warm": pytest.approx(7.0 + 4.4167, abs=1e-3)}
    assert (found.measured, found.job) == (0, pytest.approx(14 + 4.4167, abs=1e-3))


def test_the_round_that_is_timed_is_one_of_the_cell(tmp_path):
    """Four participants with 220 examples in batches of 8: at least 28 steps, at most 31."""
    (cell, _) = load_matrix(written(tmp_path)).cells
    timed = estimate.time_round(cell.experiment, cell.experiment.arm("warm"))
    assert 28 <= timed.steps <= 31
    assert 0 < timed.seconds < 10
