"""What goes wrong on real devices costs what it must and no more: three ``kdfed node`` beside one SuperLink.

Nothing here waits for a time to pass. A device is told by files to hold an answer back, or to lie
(:mod:`tests.nodes.faulty`), and a test waits for what was written down.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from kdfed.records import RunFolder
from simulations.deploy.flower import Flower
from simulations.server_app import run_experiment
from tests.devices import DeviceGrid, on_devices, write_npz
from tests.nodes.faulty import BEGUN, FAULTS, LIES
from tests.nodes.federation import (
    ROOT,
    Device,
    Federation,
    clients,
    federation,
    supernode,
    until,
)

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

PATIENCE = 240.0
NAMES = ["east", "north", "south"]
PORTS = count(45000)
COLD = {"cold": {"start": "random"}}
CONSOLIDATED = {"consolidated": {"start": "consolidated"}}


def free_port() -> int:
    """Return a port that is free, each once."""
    for port in PORTS:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no port is free")


class Run:
    """A run that was handed in.

    Parameters
    ----------
    rooms
        Where.
    out
        Its folder.
    """

    def __init__(self, rooms: Rooms, out: Path) -> None:
        self.rooms, self.out = rooms, out

    def rows(self) -> list[dict[str, Any]]:
        """Return what it has written down of its rounds so far."""
        file = self.out / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def round(self, number: int) -> dict[str, Any]:
        """Return what was written down of a round, once it is."""

        def found() -> dict[str, Any] | None:
            return next((row for row in self.rows() if row["round"] == number), None)

        row: dict[str, Any] = self.rooms.wait(found, f"round {number}")
        return row

    def ended(self) -> list[dict[str, Any]]:
        """Return what was written down of all rounds, once it has ended with a report."""
        self.rooms.wait((self.out / "report.html").exists, "a report")
        return self.rows()

    def roster(self) -> dict[str, Any]:
        """Return who takes part."""
        found: dict[str, Any] = json.loads((self.out / "roster.json").read_text())
        return found

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return found

    def hashes(self) -> dict[str, str]:
        """Return each arm's hash of the weights."""
        lines = (self.out / "outcomes.jsonl").read_text().splitlines()
        return {entry["arm"]: entry["weights_sha256"] for entry in map(json.loads, lines)}

    def said(self, text: str) -> None:
        """Wait until its log has a text."""
        file = self.out / ".kdfed" / "log"
        self.rooms.wait(lambda: file.exists() and text in file.read_text(), f"{text!r} in the log")


class Rooms:
    """A federation of three devices with digits of their own."""

    def __init__(self, whole: Federation, home: Path) -> None:
        self.whole, self.home = whole, home
        self.devices: dict[str, Device] = {}
        self.app = home / "app"
        self.app.mkdir()
        settings = (ROOT / "simulations" / "pyproject.toml").read_text()
        assert "clients.client_app:app" in settings
        settings = settings.replace("clients.client_app:app", "tests.nodes.faulty:app")
        (self.app / "pyproject.toml").write_text(settings)
        shutil.copy(ROOT / "simulations" / "quickstart.yaml", self.app)

    def start(self, *names: str) -> None:
        """Start devices, and wait until they are ready."""
        for name in names:
            file = self.home / f"{name}.npz"
            if not file.exists():
                write_npz(name, file)
            self.devices[name] = self.whole.device(name, free_port(), data=f"npz:{file}")
        for name in names:
            self.devices[name].ready()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Return a condition's value once it is true; where it never is, tell what the SuperLink said."""
        try:
            return until(condition, PATIENCE, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.whole.log()[-4000:]}") from error

    def run(self, app: Path | None = None, **changes: Any) -> Run:
        """Hand in an experiment on the devices."""
        number = time.monotonic_ns()
        file, out = self.home / f"experiment-{number}.yaml", self.home / f"run-{number}"
        file.write_text(on_devices(**changes).to_yaml())
        self.whole.hand_in(app or self.app, experiment=str(file), out=str(out))
        return Run(self, out)

    def tell(self, name: str, message: str, fault: str) -> Path:
        """Tell a device what to do when a message comes."""
        file = self.home / name / FAULTS / message
        file.parent.mkdir(exist_ok=True)
        file.with_name(message + BEGUN).unlink(missing_ok=True)
        file.write_text(fault)
        return file

    def begun(self, name: str, message: str) -> None:
        """Wait until a device holds a message."""
        file = self.home / name / FAULTS / (message + BEGUN)
        self.wait(file.exists, f"{name} to get {message}")

    def online(self) -> set[str]:
        """Return the nodes that the SuperLink takes for present."""
        flower = Flower("local", self.home / "flower")
        return {node.node_id for node in flower.nodes() if node.status == "online"}

    def kill(self, name: str) -> None:
        """Kill a device's SuperNode, without a word to the SuperLink; what is left of the device ends too."""
        device = self.devices[name]
        supernode(device).kill()
        assert device.process.wait(60) == 1


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooms]:
    home = tmp_path_factory.mktemp("rooms")
    with federation(home, free_port()) as whole:
        rooms = Rooms(whole, home)
        rooms.start(*NAMES)
        yield rooms


@pytest.fixture
def rooms(federated: Rooms) -> Iterator[Rooms]:
    """Three devices that are there, and are told nothing."""
    federated.start(*[name for name in NAMES if federated.devices[name].process.poll() is not None])
    federated.wait(lambda: len(federated.online()) == 3, "three devices that are present")
    yield federated
    for name in NAMES:
        shutil.rmtree(federated.home / name / FAULTS, ignore_errors=True)


@pytest.fixture
def took(capsys: pytest.CaptureFixture[str]) -> Callable[[str, float], None]:
    """Return what shows how long something took, given when it began; docs/faults.md has such numbers."""

    def show(what: str, began: float) -> None:
        with capsys.disabled():
            print(f"\n{what}: {time.monotonic() - began:.0f} s")

    return show


def absent(row: dict[str, Any]) -> list[tuple[int, str]]:
    """Return who is left out, and why."""
    return [(one["participant"], one["reason"]) for one in row["absent"]]


# ----------------------------------------------------------------------------- nothing goes wrong


def test_a_run_on_devices_leaves_what_a_simulation_leaves(rooms: Rooms, took: Any, tmp_path: Path) -> None:
    """The shipped app; the weights are those that the same devices have in one process, bit for bit."""
    began = time.monotonic()
    run = rooms.run(ROOT / "simulations", **{"rounds.horizon": 1})
    rows = run.ended()
    took("cold and consolidated, a round each", began)
    assert [(row["arm"], row["round"], row["answered"]) for row in rows] == [
        ("cold", 0, 0),
        ("cold", 1, 3),
        ("consolidated", 0, 3),
        ("consolidated", 1, 3),
    ]
    assert all(row["absent"] == [] for row in rows)
    assert [one["name"] for one in run.roster()["participants"]] == NAMES
    assert run.roster()["refused"] == []
    assert run.summary()["failures"] == []
    page = (run.out / "report.html").read_text()
    assert "three-devices" in page
    assert run.hashes() == hashes_in_process(rooms, tmp_path, **{"rounds.horizon": 1})


def hashes_in_process(
    rooms: Rooms, folder: Path, change: Callable[..., Any] | None = None, **changes: Any
) -> dict[str, str]:
    """Return each arm's hash of the weights, where the devices are in this process."""
    configs = {
        number: {"participant": name, "data": f"npz:{rooms.home / name}.npz"}
        for number, name in enumerate(NAMES, 11)
    }
    grid = DeviceGrid(configs, **({} if change is None else {"change": change}))
    experiment = on_devices(**changes)
    run = RunFolder.open_for(folder / "twin", experiment)
    run_experiment(grid, experiment, run, "flower", report=False)
    return {outcome.arm: outcome.weights_sha256 for outcome in run.read_outcomes()}


# ----------------------------------------------------------------------------- devices that lie

SAYS = {
    "nan": "not finite",
    "huge": "weights too far from where they started",
    "shape": "shape",
    "truncated": "cannot be",
    "forged": "a reply that cannot be read",
    "examples": "num-examples",
    "steps": "local-steps",
    "loss": "train-loss",
}
"""What is said of each lie."""

TOLD = [("nan", "huge"), ("shape", "truncated"), ("forged", "examples"), ("steps", "loss")]
"""The lies of south and of north, round by round; in the last one everybody is honest."""


def test_who_lies_is_named_and_changes_no_bit_of_the_model(rooms: Rooms, tmp_path: Path) -> None:
    """Real devices whose app lies; the twin is a run in which those answers hold nothing."""
    assert {lie for lies in TOLD for lie in lies} == set(SAYS) == set(LIES)
    for number, (souths, norths) in enumerate(TOLD, 1):
        rooms.tell("south", f"train-{number}", souths)
        rooms.tell("north", f"train-{number}", norths)
    changes = {"arms": COLD, "rounds.horizon": len(TOLD) + 1}
    run = rooms.run(**changes)
    _, *rows = run.ended()
    for row, (souths, norths) in zip(rows, TOLD, strict=False):
        assert row["answered"] == 1
        (north, of_north), (south, of_south) = absent(row)
        assert (north, south) == (1, 2)
        assert SAYS[norths] in of_north
        assert SAYS[souths] in of_south
    assert (rows[-1]["answered"], rows[-1]["absent"]) == (3, [])

    trained: Counter[int] = Counter()

    def empty(node: int, kind: str, reply: Message) -> Message:
        if kind == "train":
            trained[node] += 1
            if node != 11 and trained[node] <= len(TOLD):
                reply.content = RecordDict()
        return reply

    assert run.hashes() == hashes_in_process(rooms, tmp_path, empty, **changes)


# ----------------------------------------------------------------------------- devices that are late


def test_a_round_ends_with_k_of_n_and_who_is_late_is_not_asked_until_it_has_answered(rooms: Rooms) -> None:
    held = rooms.tell("south", "train-1", "hold")
    slow = rooms.tell("east", "train-2", "hold")
    run = rooms.run(arms=COLD, **{"server.enough": 2, "server.grace": 1, "rounds.horizon": 3})
    rooms.begun("south", "train-1")
    run.round(1)
    held.unlink()
    run.said("late: reply to round 1, not used")
    slow.unlink()
    _, first, second, third = run.ended()
    assert [row["answered"] for row in (first, second, third)] == [2, 2, 3]
    assert absent(first) == [(2, "no reply within 1 seconds of the first 2 (server.enough)")]
    assert absent(second) == [
        (2, "busy: has not answered round 1 yet"),
        (2, "late: reply to round 1, not used"),
    ]
    assert absent(third) == []


def test_a_deadline_ends_a_round_and_a_client_that_is_killed_costs_one_message(
    rooms: Rooms, took: Any
) -> None:
    """South is late in round 1, and its client is killed in round 3."""
    held = rooms.tell("south", "train-1", "hold")
    slow = rooms.tell("east", "train-2", "hold")
    rooms.tell("south", "train-3", "hold")
    run = rooms.run(arms=COLD, **{"server.deadlines.train": 60, "rounds.horizon": 4})
    run.round(1)
    held.unlink()
    run.said("late: reply to round 1, not used")
    slow.unlink()
    rooms.begun("south", "train-3")
    (client,) = clients(rooms.devices["south"])
    client.kill()
    killed = time.monotonic()
    run.round(3)
    took("a client is killed, until the round has ended without it", killed)
    _, first, second, third, fourth = run.ended()
    assert absent(first) == [(2, "no reply within 60 seconds")]
    assert absent(second) == [
        (2, "busy: has not answered round 1 yet"),
        (2, "late: reply to round 1, not used"),
    ]
    ((participant, reason),) = absent(third)
    assert participant == 2
    assert "the device's client process was ended by SIGKILL" in reason
    assert (fourth["answered"], absent(fourth)) == (3, [])


# ----------------------------------------------------------------------------- devices that go and come


def test_who_comes_late_takes_part_from_the_next_round_on(rooms: Rooms, took: Any) -> None:
    assert rooms.devices["south"].stop() == 0
    held = rooms.tell("east", "train-1", "hold")
    run = rooms.run(arms=COLD, **{"server.quorum": 2, "server.grace": 1, "rounds.horizon": 4})
    rooms.begun("east", "train-1")
    began = time.monotonic()
    rooms.start("south")
    took("a device is started, until it is ready", began)
    held.unlink()
    _, *rows = run.ended()
    assert absent(rows[0]) == [(2, "no device of this number has come yet")]
    assert [row["answered"] for row in rows] == sorted(row["answered"] for row in rows)
    assert (rows[-1]["answered"], absent(rows[-1])) == (3, [])
    assert [one["name"] for one in run.roster()["participants"]] == NAMES


def test_a_supernode_that_is_killed_in_a_round_costs_that_one_and_takes_part_when_it_is_back(
    rooms: Rooms, took: Any
) -> None:
    """South is killed in round 1 and started again; north is held until the SuperLink has noticed."""
    rooms.tell("south", "train-1", "hold")
    slow = rooms.tell("north", "train-2", "hold")
    run = rooms.run(arms=COLD, **{"server.enough": 2, "server.grace": 1, "rounds.horizon": 6})
    rooms.begun("south", "train-1")
    old = node_of(run, "south")
    killed = time.monotonic()
    rooms.kill("south")
    shutil.rmtree(rooms.home / "south" / FAULTS)
    rooms.start("south")
    rooms.wait(lambda: old not in rooms.online(), "a SuperLink that has noticed")
    took("a SuperNode is killed, until the SuperLink has noticed", killed)
    slow.unlink()
    rooms.wait(lambda: node_of(run, "south") != old, "south to be back")
    took("a SuperNode is killed and started again, until it takes part", killed)
    _, *rows = run.ended()
    assert absent(rows[0]) == [(2, "no reply within 1 seconds of the first 2 (server.enough)")]
    assert absent(rows[1]) == [(2, "busy: has not answered round 1 yet")]
    assert all(row["answered"] >= 2 for row in rows)
    assert (rows[-1]["answered"], absent(rows[-1])) == (3, [])
    assert run.roster()["refused"] == []


def test_a_supernode_that_is_killed_in_the_teacher_phase_costs_its_teacher(rooms: Rooms, took: Any) -> None:
    rooms.tell("south", "train.teacher-0", "hold")
    run = rooms.run(arms=CONSOLIDATED, **{"rounds.horizon": 1})
    rooms.begun("south", "train.teacher-0")
    killed = time.monotonic()
    rooms.kill("south")
    start = run.round(0)
    took("a SuperNode is killed, until the teacher phase goes on without it", killed)
    assert start["answered"] == 2
    ((participant, reason),) = absent(start)
    assert participant == 2
    assert reason.startswith("error reply: ")
    last = run.ended()[-1]
    assert last["answered"] == 2
    assert run.summary()["failures"] == []


def node_of(run: Run, name: str) -> str:
    """Return the node that a participant is."""
    (node,) = [one["node"] for one in run.roster()["participants"] if one["name"] == name]
    return str(node)
