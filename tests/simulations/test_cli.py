"""The ``kdfed`` command: its words, its exit codes, and that nothing is started on wrong input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest

from kdfed import __version__
from simulations.cli import catalogue, expand, main
from simulations.engines.home import MARK

# ----------------------------------------------------------------------------- several values after a flag


@pytest.mark.parametrize(
    ("words", "expanded"),
    [
        ("run a.yaml --seeds 0 1 2", "run a.yaml --seeds=0 --seeds=1 --seeds=2"),
        ("run a.yaml --seeds 0 --seeds 1", "run a.yaml --seeds=0 --seeds=1"),
        ("run a.yaml --seeds=0 1", "run a.yaml --seeds=0 --seeds=1"),
        ("run --seeds 0 1 a.yaml", "run --seeds=0 --seeds=1 a.yaml"),
        ("run a.yaml --seeds 0 one --out d", "run a.yaml --seeds=0 --seeds=one --out d"),
        ("run a.yaml --seeds -1", "run a.yaml --seeds=-1"),
        ("run --set a=1 b.c=2 a.yaml", "run --set=a=1 --set=b.c=2 a.yaml"),
        ("run a.yaml --set alpha --out d", "run a.yaml --set=alpha --out d"),
        ("run a.yaml --set a=1 --seeds 0 1", "run a.yaml --set=a=1 --seeds=0 --seeds=1"),
        ("run a.yaml --seeds", "run a.yaml --seeds"),
        ("run -- --seeds 0 1", "run -- --seeds 0 1"),
    ],
)
def test_seeds_and_set_take_several_values(words, expanded):
    assert expand(words.split()) == expanded.split()


def test_values_of_set_may_hold_spaces():
    assert expand(["--set", "targets=[0.8, 0.9]", "name=x"]) == ["--set=targets=[0.8, 0.9]", "--set=name=x"]


# ----------------------------------------------------------------------------- wrong input


WRONG = {
    "an unknown key": (
        ["--set", "rounds.horizonn=3"],
        "rounds.horizonn: unknown key; did you mean 'horizon'?",
    ),
    "a misspelt method": (["--set", "consolidation.method=vanila"], "did you mean 'vanilla'?"),
    "alpha 0": (["--set", "partition.alpha=0"], "partition.alpha: expected a number above 0.0, got 0"),
    "more participants than examples": (
        ["--set", "partition.participants=5000", "partition.min-examples=1"],
        "partition.participants: ",
    ),
    "more classes than there are": (
        ["--set", "partition={kind: k-classes, classes: 11, participants: 4}"],
        "partition.classes: ",
    ),
    "a target above 1": (["--set", "targets=[1.5]"], "targets"),
    "a word as a seed": (["--seeds", "0", "one"], "seeds"),
    "an unreadable data path": (["--set", "data.source=parquet:not/there"], "data.source: "),
    "a device that is not there": (["--set", "device=cuda:99"], "device: expected a device of this machine"),
    "nowhere": (["--out", ""], "--out: expected where to write"),
    "an unknown engine": (["--engine", "spark"], "flower"),
    "no node": (["--nodes", "0"], "nodes"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_one_error_and_starts_nothing(what, experiment, capsys):
    words, message = WRONG[what]
    assert main(["run", str(experiment), "--engine", "inprocess", *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (experiment.parent / "runs").exists()


def test_every_mistake_is_reported_in_one_error(experiment, capsys):
    assert main(["run", str(experiment), "--set", "partition.alpha=0", "nam=x", "--seeds", "one"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1
    for key in ("partition.alpha", "nam: unknown key", "seeds"):
        assert key in shown


def test_what_does_not_fit_the_data_is_reported_beside_other_mistakes(experiment, capsys):
    words = ["--set", "partition.participants=5000", "local.lr=0", "arms.cold.local.lr=-1", "baseline=colt"]
    assert main(["run", str(experiment), *words]) == 2
    shown = capsys.readouterr().err
    assert "4 mistakes" in shown
    for key in ("partition.participants", "local.lr", "arms.cold.local.lr", "baseline"):
        assert f"  {key}: " in shown


def test_data_are_not_read_where_their_own_keys_are_wrong(experiment, capsys):
    assert main(["run", str(experiment), "--set", "data.source=none", "data.limit=0"]) == 2
    assert "1 mistake\n  data.limit: " in capsys.readouterr().err


def test_a_mistake_that_the_data_show_too_is_reported_once(experiment, capsys):
    assert main(["run", str(experiment), "--set", "model.options.widht=3"]) == 2
    assert "1 mistake\n  model: " in capsys.readouterr().err


def test_an_experiment_file_is_not_replaced_by_its_own_run(experiment, capsys):
    file = experiment.rename(experiment.with_name("experiment.yaml"))
    file.write_text("# mine\n" + file.read_text())
    assert main(["run", file.name, "--engine", "inprocess", "--out", "."]) == 2
    assert "would replace the file that it was started from" in capsys.readouterr().err
    assert file.read_text().startswith("# mine")


def test_a_file_that_is_not_there_is_an_error(tmp_path, capsys):
    assert main(["run", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_device_without_its_file_is_refused(tmp_path, capsys):
    assert main(["node", str(tmp_path)]) == 2
    assert "expected a device's folder with node.yaml: No such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_holds_another_experiment_is_an_error(experiment, capsys):
    run = ["run", str(experiment), "--engine", "inprocess", "--out", "mine"]
    assert main(run) == 0
    before = (experiment.parent / "mine/rounds.jsonl").read_text()
    capsys.readouterr()
    assert main([*run, "--set", "local.lr=0.2"]) == 2
    shown = capsys.readouterr()
    assert "local" in shown.err
    assert shown.out == ""
    assert (experiment.parent / "mine/rounds.jsonl").read_text() == before
    assert main([*run, "--set", "local.lr=0.2", "--overwrite"]) == 0


@pytest.mark.slow
def test_a_complete_run_is_not_repeated_without_a_word(experiment, capsys):
    run = ["run", str(experiment), "--engine", "inprocess", "--out", "mine"]
    assert main(run) == 0
    folder = experiment.parent / "mine"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(run) == 2
    assert "holds a complete run" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert main([*run, "--overwrite"]) == 0


def test_a_start_that_fails_leaves_the_records_that_are_there(experiment, monkeypatch, capsys):
    from kdfed.errors import RunError
    from simulations.engines import inprocess

    run = ["run", str(experiment), "--engine", "inprocess", "--out", "mine"]
    assert main(run) == 0
    folder = experiment.parent / "mine"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def no_grid(*_, **__):
        raise RunError("no nodes")

    monkeypatch.setattr(inprocess, "InProcessGrid", no_grid)
    assert main([*run, "--overwrite"]) == 1
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert main([*run[:-1], "new", "--overwrite"]) == 1
    assert not (experiment.parent / "new").exists()


@pytest.mark.slow
def test_a_run_that_lacks_an_arm_goes_on_with_it(experiment, capsys):
    run = ["run", str(experiment), "--engine", "inprocess", "--out", "mine"]
    assert main(run) == 0
    folder = experiment.parent / "mine"
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "models" / "consolidated-3.safetensors").unlink()
    capsys.readouterr()
    assert main(run) == 0
    assert "going on: 1 of 2 runs" in capsys.readouterr().out
    again = json.loads((folder / "summary.json").read_text())
    assert [r["weights_sha256"] for r in again["runs"]] == [r["weights_sha256"] for r in summary["runs"]]


# ----------------------------------------------------------------------------- running


def test_a_run_shows_its_results_and_where_they_are(experiment, capsys):
    assert main(["run", str(experiment), "--engine", "inprocess", "--seeds", "0", "1"]) == 0
    shown = capsys.readouterr().out
    folder = experiment.parent / "runs/tiny"
    assert str(folder) in shown
    assert "saved against cold" in shown
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert summary["engine"] == "inprocess"


def test_a_failed_run_exits_with_1_and_says_where_its_records_are(experiment, monkeypatch, capsys):
    from kdfed.errors import RunError
    from simulations.engines import inprocess

    def fail(*_, **__):
        raise RunError("only 1 of 3 participants answered")

    monkeypatch.setattr(inprocess, "run", fail)
    assert main(["run", str(experiment), "--engine", "inprocess"]) == 1
    shown = capsys.readouterr().err
    assert "only 1 of 3 participants answered" in shown
    assert str(experiment.parent / "runs/tiny") in shown


def test_warnings_of_participants_are_told_where_they_are(experiment, tmp_path, monkeypatch, capsys):
    (tmp_path / "users_warning_net.py").write_text(
        "import torch, warnings\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, input_shape, classes):\n"
        "        super().__init__()\n"
        "        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n\n"
        "    def forward(self, x):\n"
        "        if self.training and torch.is_grad_enabled() and len(x) > 3:\n"
        "            warnings.warn('this model is old', UserWarning)\n"
        "        return self.layers(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--set", "model={name: users_warning_net:Net}", "--engine", "inprocess", "--out", "mine"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["run", str(experiment), *words]) == 0
    log = tmp_path / "mine" / ".kdfed" / "log"
    assert f"warnings: {log}" in capsys.readouterr().out
    assert log.read_text().count("this model is old (users_warning_net.py, line 11)") == 2, "once an arm"


def test_records_lie_where_the_command_was_started_whatever_a_users_model_does(experiment, monkeypatch):
    (experiment.parent / "users_moving_net.py").write_text(
        "import os, torch\n\n\n"
        "def net(input_shape, classes):\n"
        "    os.chdir('/')\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(str(experiment.parent))
    words = ["--set", "model={name: users_moving_net:net}", "--engine", "inprocess", "--out", "mine"]
    assert main(["run", str(experiment), *words]) == 0
    assert (experiment.parent / "mine" / "summary.json").exists()


def test_an_interrupted_run_exits_with_130(experiment, monkeypatch, capsys):
    from simulations.engines import inprocess

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(inprocess, "run", interrupt)
    assert main(["run", str(experiment), "--engine", "inprocess"]) == 130
    assert "Interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_with_one_line_that_says_where_its_records_are(
    name, experiment, monkeypatch, capsys
):
    from simulations.engines import inprocess

    number = getattr(signal, name)

    def long_run(*_, **__):
        try:
            os.kill(os.getpid(), number)
            time.sleep(30)
        finally:
            os.kill(os.getpid(), number)  # impatience does not disturb the unwinding
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    before = signal.getsignal(number)
    monkeypatch.setattr(inprocess, "run", long_run)
    assert main(["run", str(experiment), "--engine", "inprocess"]) == 128 + number
    records = experiment.parent / "runs/tiny"
    assert capsys.readouterr().err.strip() == f"Interrupted by {name}. Recorded so far: {records}"
    assert signal.getsignal(number) is before


SLOW_LIST = """
import sys, time
from simulations import cli

def slow():
    print("ready", flush=True)
    try:
        time.sleep(30)
    finally:
        time.sleep(0.2)

cli.catalogue = slow
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_without_end_give_one_line_and_the_code_of_the_first(name):
    number = getattr(signal, name)
    command = [sys.executable, "-c", SLOW_LIST, "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout.readline() == "ready\n"
            while started.poll() is None:
                started.send_signal(number)
                time.sleep(0.005)
            assert started.returncode == 128 + number
            assert started.stderr.read().strip() == f"Interrupted by {name}."
        finally:
            started.kill()


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"kdfed {__version__}\n")


def test_an_engine_that_cannot_start_removes_no_records(experiment, capsys):
    run = ["run", str(experiment), "--out", "mine"]
    assert main([*run, "--engine", "inprocess"]) == 0
    files = sorted((experiment.parent / "mine").rglob("*"))
    assert main([*run, "--engine", "ray", "--address", "127.0.0.1:1"]) == 2
    assert "--address: no Ray cluster answers at '127.0.0.1:1'" in capsys.readouterr().err
    assert sorted((experiment.parent / "mine").rglob("*")) == files


def test_an_error_that_nobody_foresaw_keeps_its_traceback(experiment, monkeypatch):
    from simulations.engines import inprocess

    def crash(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(inprocess, "run", crash)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["run", str(experiment), "--engine", "inprocess"])


@pytest.mark.slow
def test_report_rebuilds_the_page_from_the_records(experiment, capsys):
    assert main(["run", str(experiment), "--engine", "inprocess", "--out", "mine"]) == 0
    page = experiment.parent / "mine/report.html"
    page.unlink()
    assert main(["report", "mine"]) == 0
    assert page.exists()
    assert "cost to target" in capsys.readouterr().out


@pytest.mark.slow
def test_report_of_a_folder_of_the_first_version_says_so_and_leaves_its_records(tmp_path, capsys):
    first = Path(__file__).parents[1] / "kdfed" / "records" / "schema_1"
    shutil.copytree(first, tmp_path / "old")
    assert main(["report", str(tmp_path / "old")]) == 0
    assert "Recorded by the first version of kdfed" in (tmp_path / "old" / "report.html").read_text()
    capsys.readouterr()
    for file in first.iterdir():
        assert (tmp_path / "old" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{}", "experiment: expected this key"),
        ("summary.json", "[]", "expected an object, got []"),
        ("rounds.jsonl", '{"accuracy": null}\n', "line 1: expected a record"),
    ],
)
def test_report_of_broken_records_is_an_error(experiment, capsys, name, text, message):
    assert main(["run", str(experiment), "--engine", "inprocess", "--out", "mine"]) == 0
    (experiment.parent / "mine" / name).write_text(text)
    assert main(["report", "mine"]) == 2
    assert message in capsys.readouterr().err


def test_report_of_a_folder_without_records_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


# ----------------------------------------------------------------------------- looking


def test_partition_shows_a_table_and_draws_a_picture(experiment, capsys):
    assert main(["partition", str(experiment), "--seed", "4", "--out", "who.png"]) == 0
    shown = capsys.readouterr().out
    assert "dirichlet, 5 participants, seed 4" in shown
    assert (experiment.parent / "who.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_an_error(experiment, capsys):
    (experiment.parent / "who.png").mkdir()
    assert main(["partition", str(experiment), "--out", "who.png"]) == 2
    assert "expected a file that can be written" in capsys.readouterr().err


def test_a_picture_does_not_replace_what_is_none(experiment, capsys):
    before = experiment.read_bytes()
    assert main(["partition", str(experiment), "--out", str(experiment)]) == 2
    assert "--out: expected a file .png, got" in capsys.readouterr().err
    assert experiment.read_bytes() == before


def test_partition_checks_its_input_like_run(experiment, capsys):
    assert main(["partition", str(experiment), "--seed", "four"]) == 2
    assert "seeds" in capsys.readouterr().err


def test_list_names_everything_that_an_experiment_can_name(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in (
        "vanilla",
        "label-counts",
        "dirichlet",
        "mnist5k",
        "resnet8",
        "proximal",
        "krum",
        "inprocess",
        "generated",
        "efficientnet-lite0",
    ):
        assert name in shown
    assert "quickstart.yaml" in shown


def test_everything_listed_has_a_line():
    for entries in catalogue().values():
        assert entries
        assert all(line and "\n" not in line for line in entries.values())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"kdfed {__version__}"


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys; from simulations.cli import main; code = main(['run', '--help'])\n"
        "heavy = {'torch', 'ray', 'matplotlib', 'flwr', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "EXPERIMENT" in done.stdout
    assert time.monotonic() - start < 3


# ----------------------------------------------------------------------------- through Flower


@pytest.mark.sim
def test_an_experiment_runs_through_flower_from_the_command_line(experiment, capsys):
    folder = experiment.parent / "a folder's name"
    words = ["--nodes", "2", "--set", "partition.participants=4", "--out", folder.name]
    assert main(["run", str(experiment), *words]) == 0
    assert json.loads((folder / "summary.json").read_text())["engine"] == "flower"
    assert (folder / "report.html").exists()
    assert "rounds 1/1" in capsys.readouterr().out


@pytest.mark.sim
def test_ctrl_c_stops_everything_that_was_started(experiment):
    command = [sys.executable, "-c", "import sys; from simulations.cli import main; sys.exit(main())"]
    run = subprocess.Popen(
        [*command, "run", str(experiment), "--nodes", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "meeting the nodes" in run.stdout.readline()
    started = psutil.Process(run.pid).children(recursive=True)
    assert any("flower-superlink" in " ".join(process.cmdline()) for process in started)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Interrupted by SIGINT. Recorded so far: " in error
    assert "Traceback" not in error
    assert json.loads((experiment.parent / "runs/tiny/summary.json").read_text())["engine"] == "flower"
    assert not [process for process in started if is_alive(process)]


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(("engine", "name"), [("flower", "SIGKILL"), ("ray", "SIGINT"), ("ray", "SIGTERM")])
def test_whatever_ends_the_command_nothing_of_it_is_left(experiment, engine, name):
    """Signals of a terminal and of ``timeout`` reach the whole process group, here thrice."""
    command = [sys.executable, "-m", "simulations.cli", "run", str(experiment), "--engine", engine]
    with subprocess.Popen(
        [*command, "--nodes", "1", "--set", "rounds.horizon=100000", "targets=[1.0]"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as run:
        family: list[psutil.Process] = []
        try:
            assert "meeting the nodes" in run.stdout.readline()
            family = psutil.Process(run.pid).children(recursive=True)
            (home,) = {one.environ()[MARK] for one in family if MARK in one.environ()}
            if name == "SIGKILL":
                run.kill()
            else:
                for _ in range(3):
                    os.killpg(run.pid, getattr(signal, name))
                    time.sleep(0.2)
            _, error = run.communicate(timeout=120)
            if name != "SIGKILL":
                assert run.returncode == 128 + getattr(signal, name)
                assert (
                    error.strip()
                    == f"Interrupted by {name}. Recorded so far: {experiment.parent / 'runs/tiny'}"
                )
            psutil.wait_procs(family, timeout=30)
            assert not [process for process in family if is_alive(process)]
            assert not Path(home).exists()
        finally:
            run.kill()
            for process in filter(is_alive, family):
                process.kill()


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
