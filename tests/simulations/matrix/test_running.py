"""What is run, in which order, and what is left; in this process but for the tests that say otherwise."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from threading import Timer

import pytest
from rich.console import Console

from kdfed.errors import RunFolderError
from kdfed.events import ignore
from kdfed.records import RunFolder
from kdfed.records.lock import FolderLock
from simulations.cli import main
from simulations.engines import inprocess
from simulations.experiments import build_experiment
from simulations.matrix import Request, chosen_cells, jobs, load_matrix, running
from simulations.matrix.estimate import Estimate
from simulations.matrix.jobs import cell_path, look_up, run_path
from simulations.matrix.running import run_matrix
from tests import recount
from tests.simulations.matrix.matrices import written

COUNTS = ("arm", "seed", "round", "exchanges", "accuracy", "bytes_up", "bytes_down", "local_steps")


def run(folder, only=None, seeds=None, file=None, **request):
    matrix, console = load_matrix(file or folder / "tiny.yaml"), Console(file=io.StringIO(), width=200)
    asked = Request(chosen_cells(matrix, only, seeds), **request)
    return run_matrix(matrix, folder / "out", asked, console), console.file.getvalue()


def cells_of(out):
    return json.loads((out / "matrix.json").read_text())


@pytest.fixture
def ran(monkeypatch):
    """Return the jobs that are run, in their order."""
    done, work = [], jobs.work

    def noted(order):
        done.append(str(order))
        return work(order)

    monkeypatch.setattr(jobs, "work", noted)
    return done


@pytest.fixture
def guessed(monkeypatch):
    """Let every arm of a cell take as long as its name has letters, times ten minutes; nothing is timed."""
    monkeypatch.setattr(
        running,
        "_time",
        lambda name, values, folder: Estimate(dict.fromkeys(values["arms"], 600.0 * len(name)), 0, 0.5),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "guessed")
def test_a_cell_is_joined_to_what_kdfed_run_would_have_left(tmp_path, tiny):
    written(tmp_path)
    outcome, _ = run(tmp_path)
    assert (outcome.left, outcome.failed) == ((), ())
    cell = next(cell for cell in load_matrix(tmp_path / "tiny.yaml").cells if cell.name == "skewed")
    experiment = build_experiment(cell.experiment.model_dump(mode="json"))
    with RunFolder.open_for(tmp_path / "alone", experiment) as folder:
        inprocess.run(experiment, folder, nodes=1, on_event=ignore, report=False)
    alone, joined = RunFolder(tmp_path / "alone"), RunFolder(cell_path(tmp_path / "out", "skewed"))
    assert joined.read_experiment() == alone.read_experiment()
    theirs, ours = (
        [{key: asdict(one)[key] for key in COUNTS} for one in run.read_rounds()] for run in (alone, joined)
    )
    assert ours == theirs
    assert [one.weights_sha256 for one in joined.read_outcomes()] == [
        one.weights_sha256 for one in alone.read_outcomes()
    ]
    summary = joined.read_summary(joined.read_experiment(), joined.read_rounds())  # counts it again
    assert summary["comparisons"] == alone.read_summary()["comparisons"]
    assert recount.check(joined.path) == []
    assert summary["partitions"] == alone.read_summary()["partitions"]


@pytest.mark.usefixtures("in_this_process", "guessed")
def test_the_cheapest_cell_is_run_first_and_nothing_twice(tmp_path, ran):
    """`even` has one seed of 4 letters, `skewed` two seeds of 6."""
    written(tmp_path)
    run(tmp_path)
    assert ran == ["even, seed 1", "skewed, seed 1", "skewed, seed 2"]
    before = (tmp_path / "out" / "matrix.json").read_bytes()
    run(tmp_path)
    assert len(ran) == 3
    assert (tmp_path / "out" / "matrix.json").read_bytes() == before


@pytest.mark.usefixtures("in_this_process", "guessed")
def test_what_does_not_fit_into_the_minutes_is_left_and_named(tmp_path, ran):
    """A job of `even` is estimated at 2 arms x 40 minutes, one of `skewed` at 2 x 60."""
    written(tmp_path)
    outcome, _ = run(tmp_path, minutes=100)
    assert ran == ["even, seed 1"]
    assert list(outcome.left) == ["skewed, seed 1", "skewed, seed 2"]
    told = cells_of(tmp_path / "out")
    assert (told["unfinished"], {one["cell"] for one in told["cells"]}) == (["skewed"], {"even"})


@pytest.mark.usefixtures("in_this_process", "guessed")
def test_recorded_seconds_take_the_place_of_the_estimate(tmp_path, ran):
    """After seed 1 of `skewed` took seconds, seed 2 fits into a minute."""
    written(tmp_path)
    run(tmp_path, only=["skewed"], seeds=["1"])
    outcome, told = run(tmp_path, only=["skewed"], minutes=1)
    assert (list(outcome.left), ran) == ([], ["skewed, seed 1", "skewed, seed 2"])
    rows = {line.split()[0]: line.split() for line in told.splitlines() if line.split()}
    assert rows["skewed"][1:5] == ["records", "2", "2", "3"]
    assert "even" not in rows


@pytest.mark.usefixtures("in_this_process", "guessed")
def test_an_estimate_runs_nothing(tmp_path, ran):
    written(tmp_path)
    outcome, told = run(tmp_path, estimate_only=True)
    assert (ran, list(outcome.left)) == ([], [])
    row = next(line.split() for line in told.splitlines() if "skewed" in line)
    assert row == ["skewed", "one", "round", "2", "2", "3", "240.0", "120.0", "0", "of", "2", "240.0"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "guessed")
def test_a_job_that_was_killed_goes_on_with_its_next_arm(tmp_path, ran):
    written(tmp_path)
    run(tmp_path)
    before, out = (tmp_path / "out" / "matrix.json").read_bytes(), tmp_path / "out"
    killed = run_path(out, "even", 1)
    cold = [line for line in (killed / "rounds.jsonl").read_text().splitlines() if '"cold"' in line]
    half = (killed / "rounds.jsonl").read_text().splitlines()[len(cold)]
    (killed / "rounds.jsonl").write_text("\n".join([*cold, half, half[:40]]))
    (killed / "outcomes.jsonl").write_text((killed / "outcomes.jsonl").read_text().splitlines()[0] + "\n")
    (killed / "summary.json").unlink()
    shutil.rmtree(cell_path(out, "even"))
    (out / "matrix.json").unlink()
    ran.clear()
    run(tmp_path)
    assert ran == ["even, seed 1"]
    again = (killed / "rounds.jsonl").read_text().splitlines()
    assert again[: len(cold)] == cold
    assert (out / "matrix.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "guessed")
def test_a_joined_cell_alone_is_enough_to_go_on(tmp_path, ran):
    """Records of cells are what is committed; a cell that gets a seed more runs that seed alone."""
    written(tmp_path)
    run(tmp_path)
    shutil.rmtree(tmp_path / "out" / "runs")
    ran.clear()
    run(tmp_path)
    assert ran == []
    written(tmp_path, cells__even__seeds=[1, 5])
    run(tmp_path)
    assert ran == ["even, seed 5"]
    assert {one["seed"] for one in cells_of(tmp_path / "out")["cells"] if one["cell"] == "even"} == {1, 5}


@pytest.mark.usefixtures("in_this_process", "guessed")
def test_runs_of_another_experiment_are_refused_before_anything_is_run(tmp_path, ran):
    written(tmp_path)
    run(tmp_path, only=["even"])
    written(tmp_path, cells__even__local__lr=0.3)
    ran.clear()
    with pytest.raises(RunFolderError, match="holds runs of another experiment than the cell 'even'"):
        run(tmp_path)
    shutil.rmtree(tmp_path / "out" / "runs")
    with pytest.raises(RunFolderError, match="holds runs of another experiment than the cell 'even'"):
        run(tmp_path)
    assert ran == []


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "guessed")
def test_the_code_that_computed_each_job_is_noted(tmp_path, monkeypatch):
    written(tmp_path)
    run(tmp_path, only=["even"])
    first = cells_of(tmp_path / "out")["versions"]["code"]
    assert len(first) == 12
    monkeypatch.setattr(jobs, "code_sha256", lambda *_: "f" * 64)
    run(tmp_path)
    assert cells_of(tmp_path / "out")["versions"]["code"] == f"{first}, {'f' * 12}"
    run(tmp_path)
    noted = json.loads((tmp_path / "out" / "jobs.json").read_text())
    assert {job: one["code"] for job, one in noted.items()} == {
        "even/1": first,
        "skewed/1": "f" * 12,
        "skewed/2": "f" * 12,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "guessed")
def test_an_arm_that_fails_is_told_and_the_others_go_on(tmp_path, ran):
    """A rate of 1000 diverges; the cell is joined without that arm, which the next command tries again."""
    written(tmp_path, cells__even={"arms": {"warm": {"local.lr": 1000.0}}, "local": {"momentum": 0.9}})
    outcome, _ = run(tmp_path)
    (why,) = outcome.failed
    assert why.startswith("even, seed 1: arm warm, seed 1:")
    out = tmp_path / "out"
    arms = {one["arm"] for one in cells_of(out)["cells"] if one["cell"] == "even"}
    assert arms == {"cold"}
    summary = RunFolder(cell_path(out, "even")).read_summary()
    assert [failure["arm"] for failure in summary["failures"]] == ["warm"]
    state = look_up(out, next(c for c in load_matrix(tmp_path / "tiny.yaml").cells if c.name == "even"))
    assert (state.jobs[1].state, state.is_joined) == ("failed", True)
    ran.clear()
    outcome, _ = run(tmp_path)
    assert (ran, len(outcome.failed)) == (["even, seed 1"], 1)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "guessed")
@pytest.mark.parametrize("joined", [True, False])
def test_records_belong_to_the_files_of_models_they_were_made_with_wherever_those_lie(tmp_path, joined, ran):
    written(tmp_path)
    run(tmp_path, only=["even"])
    model = run_path(tmp_path / "out", "even", 1) / "models" / "cold-1.safetensors"
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, there = (Path(model.rename(tmp_path / "here" / "model")), tmp_path / "there" / "model")

    def matrix_from(file):
        return written(tmp_path, cells__even={"arms": {"warm": {"start": f"file:{file}"}}})

    shutil.rmtree(tmp_path / "out")
    matrix_from(here)
    run(tmp_path, only=["even"])
    shutil.rmtree(tmp_path / "out" / ("runs" if joined else "cells"))
    ran.clear()
    here.rename(there)
    matrix_from(there)
    run(tmp_path, only=["even"])
    assert ran == []
    content = there.read_bytes()
    there.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a bit of its last weight
    with pytest.raises(RunFolderError, match=r"runs made with another .*there/model, SHA-256"):
        run(tmp_path, only=["even"])


@pytest.mark.usefixtures("in_this_process", "guessed")
def test_a_folder_that_another_command_uses_is_left_alone(tmp_path):
    written(tmp_path)
    lock = FolderLock(tmp_path / "out" / ".kdfed" / "lock")
    lock.take()
    with pytest.raises(RunFolderError, match="is being written to by process"):
        run(tmp_path)
    lock.release()


@pytest.mark.usefixtures("in_this_process", "guessed")
def test_a_worker_that_outlives_its_killed_command_for_a_moment_is_waited_for(tmp_path, ran):
    written(tmp_path)
    lock = FolderLock(run_path(tmp_path / "out", "even", 1) / ".kdfed" / "lock")
    lock.take()
    Timer(0.5, lock.release).start()
    run(tmp_path, only=["even"])
    assert ran == ["even, seed 1"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "guessed")
def test_the_command_says_with_3_that_jobs_are_left(tmp_path, capsys):
    words = ["matrix", str(written(tmp_path)), "--out", str(tmp_path / "out")]
    assert main([*words, "--minutes", "100"]) == 3
    told = capsys.readouterr().out
    assert "2 jobs would not have ended within 100 minutes: skewed, seed 1, skewed, seed 2." in told
    assert main([*words, "--only", "even", "skewed", "--seeds", "1", "2", "--minutes", "1000"]) == 0
    assert "not run" not in capsys.readouterr().out
    assert (tmp_path / "out" / "matrix.html").exists()


def test_the_command_runs_no_cell_that_there_is_not(tmp_path, capsys):
    words = ["matrix", str(written(tmp_path)), "--out", str(tmp_path / "out")]
    assert main([*words, "--only", "evn"]) == 2
    assert "did you mean 'even'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_leave_what_this_process_alone_leaves(tmp_path, request):
    """The matrices are the same to the byte: nothing in them depends on who ran what, and when."""
    words = ["matrix", str(written(tmp_path)), "--out"]
    assert main([*words, str(tmp_path / "two"), "--workers", "2"]) == 0
    request.getfixturevalue("in_this_process")
    assert main([*words, str(tmp_path / "one")]) == 0
    assert (tmp_path / "two" / "matrix.json").read_bytes() == (tmp_path / "one" / "matrix.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("in_this_process", "guessed")
def test_a_matrix_that_was_killed_goes_on_and_ends_alike(tmp_path, ran):
    words, out = ["matrix", str(written(tmp_path)), "--out"], tmp_path / "out"
    assert main([*words, str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-c", "from simulations.cli import main; main()", *words, str(out)]
    started = subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while not any(out.glob("runs/*/*/outcomes.jsonl")) and time.monotonic() < end:
        time.sleep(0.02)
    started.kill()
    started.wait()
    assert any(out.glob("runs/*/*/outcomes.jsonl"))
    assert not (out / "matrix.html").exists()
    ran.clear()
    assert main([*words, str(out)]) == 0
    assert ran
    assert (out / "matrix.json").read_bytes() == (tmp_path / "whole" / "matrix.json").read_bytes()
