"""The demonstration on one machine: real processes, the records of a simulation, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from simulations.deploy.demo import (
    DIGITS,
    HOLDERS,
    Processes,
    _make_room,
    experiment,
    run_demo,
    write_images,
)
from tests.processes import started, until

ROOT = Path(__file__).parents[3]


def test_each_device_has_other_digits_and_the_server_has_all(tmp_path):
    write_images(tmp_path)
    for holder, digits in HOLDERS.items():
        folders = sorted(folder.name for folder in (tmp_path / holder).iterdir())
        assert folders == sorted(DIGITS[digit] for digit in digits)
    files = {
        holder: {file.name for file in (tmp_path / holder).rglob("*.png")} for holder in ("server", *HOLDERS)
    }
    assert sum(map(len, files.values())) == len(set.union(*files.values())) == 5000


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    from kdfed.errors import RunError

    (tmp_path / "mine").write_text("x")
    with pytest.raises(RunError, match="name another"):
        run_demo(tmp_path, 1, print)
    assert (tmp_path / "mine").read_text() == "x"


def test_records_of_real_devices_are_no_demonstration(tmp_path):
    from kdfed.errors import RunError

    (tmp_path / "roster.json").write_text("{}")
    (tmp_path / "experiment.yaml").write_text("name: devices\nrounds: {horizon: 3, why: measured}\n")
    with pytest.raises(RunError, match="name another"):
        run_demo(tmp_path, 1, print)
    assert (tmp_path / "roster.json").exists()
    with pytest.raises(RunError, match="name another"):
        run_demo(tmp_path / "roster.json", 1, print)


def test_records_of_an_earlier_demonstration_are_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "experiment.yaml").write_text(yaml.safe_dump(experiment(tmp_path, 3)))
    (out / "rounds.jsonl").write_text("")
    _make_room(out)
    assert not out.exists()


def test_a_command_that_fails_is_told(tmp_path):
    from kdfed.errors import RunError

    with pytest.raises(RunError, match="ended with exit code 3"):
        Processes(tmp_path).wait([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


MARK = "KDFED_TEST_DEMO"
"""A variable of the environment, which processes hand on: it says which demonstration started them."""


class Demo:
    """`kdfed deploy demo` as a process of its own."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.out, self.log = folder / "out", folder / "log"
        command = [sys.executable, "-m", "simulations.cli", "deploy", "demo", "--out", str(self.out)]
        self.mark = str(folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp", MARK: self.mark}
        self.process = started([*command, "--rounds", str(rounds)], self.log, environment, folder)
        self.started: set[psutil.Process] = set()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def look(self) -> None:
        """Remember what it started."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.pid != self.process.pid:
                    self.started.add(process)
            except psutil.Error:
                continue

    def until(self, words: str | None, patience: float = 400.0) -> None:
        """Wait until it says something; None waits for its end."""

        def has_come() -> bool:
            self.look()
            return self.process.poll() is not None or (words is not None and words in self.text())

        until(has_come, patience, f"the demonstration to end or to say {words!r} (see {self.log})", every=0.5)


@pytest.mark.deploy
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("deploy")
def test_the_demonstration_leaves_records_and_nothing_else(tmp_path):
    demo = Demo(tmp_path, 2)
    demo.until(None)
    assert demo.process.returncode == 0, demo.text()[-3000:]
    summary = json.loads((demo.out / "summary.json").read_text())
    assert {(run["arm"], run["stopped"]) for run in summary["runs"]} == {
        ("cold", "horizon"),
        ("consolidated", "horizon"),
    }
    roster = json.loads((demo.out / "roster.json").read_text())
    assert {one["name"] for one in roster["participants"]} == set(HOLDERS)
    assert (demo.out / "report.html").stat().st_size > 10_000
    rounds = [json.loads(line) for line in (demo.out / "rounds.jsonl").read_text().splitlines()]
    assert all(line["answered"] == 3 for line in rounds if line["round"])
    assert "3 answered (east, north, south)" in demo.text()
    assert len(demo.started) >= 5, "a SuperLink, and a node and its SuperNode of each device"
    assert [process for process in demo.started if process.is_running()] == []


@pytest.mark.deploy
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("deploy")
def test_ctrl_c_stops_everything_that_it_started(tmp_path):
    demo = Demo(tmp_path, 50)
    demo.until("cold, seed 0")
    demo.look()
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 130, demo.text()[-3000:]
    assert len(demo.started) >= 5
    left = psutil.wait_procs(list(demo.started), timeout=10)[1]
    assert left == []
