"""What goes wrong on real devices costs what it must and no more: three ``kdfed node`` beside one SuperLink.

Nothing here waits for a time to pass. A device is told by files to hold an answer back, or to lie
(:mod:`tests.nodes.faulty`), and a test waits for what was written down.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import Message, RecordDict

from tests.nodes.faulty import FAULTS, LIES
from tests.nodes.federation import ROOT, clients, federation
from tests.nodes.rooms import (
    COLD,
    CONSOLIDATED,
    NAMES,
    Rooms,
    Run,
    absent,
    hashes_in_process,
)
from tests.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.deploy, pytest.mark.timeout(600)]


DEADLINE = 30
"""Seconds of a round: three devices need five, on a machine that does nothing else."""


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


# ----------------------------------------------------------------------------- devices that lie

SAYS = {
    "nan": "not finite",
    "huge": "weights too far from where they started",
    "shape": "wrong shape of",
    "truncated": "arrays that cannot be read",
    "forged": "a reply that cannot be read",
    "examples": "as num-examples, got 1000000000000",
    "steps": "local-steps, which the settings allow, got 1000000000",
    "loss": "expected train-loss at most",
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
    """South is late in round 1, and its client is killed in round 3.

    Flower takes no reply to a message whose time is up: nobody hears of it, and nobody waits for it.
    """
    held = rooms.tell("south", "train-1", "hold")
    rooms.tell("south", "train-3", "hold")
    run = rooms.run(arms=COLD, **{"server.deadlines.train": DEADLINE, "rounds.horizon": 4})
    run.round(1)
    held.unlink()
    rooms.begun("south", "train-3")
    (client,) = clients(rooms.devices["south"])
    client.kill()
    killed = time.monotonic()
    run.round(3)
    took("a client is killed, until the round has ended without it", killed)
    _, first, second, third, fourth = run.ended()
    assert absent(first) == [(2, f"no reply within {DEADLINE} seconds")]
    assert absent(second) == [(2, "busy: has not answered round 1 yet")]
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
    old = run.node_of("south")
    killed = time.monotonic()
    rooms.kill("south")
    shutil.rmtree(rooms.home / "south" / FAULTS)
    rooms.start("south")
    rooms.wait(lambda: old not in rooms.online(), "a SuperLink that has noticed")
    took("a SuperNode is killed, until the SuperLink has noticed", killed)
    slow.unlink()
    rooms.wait(lambda: run.node_of("south") != old, "south to be back")
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


def test_a_device_that_is_stopped_in_order_comes_back_in_the_same_run(rooms: Rooms, took: Any) -> None:
    """South is told to stop while it works in round 2, and started again in round 3."""
    rooms.tell("south", "train-2", "hold")
    slow = rooms.tell("east", "train-3", "hold")
    run = rooms.run(arms=COLD, **{"server.deadlines.train": 60, "rounds.horizon": 6})
    rooms.begun("south", "train-2")
    stopped = time.monotonic()
    assert rooms.devices["south"].stop() == 0
    took("a device is told to stop, until it has ended", stopped)
    node = run.node_of("south")
    run.round(2)
    took("a device is told to stop, until the round has ended without it", stopped)
    rooms.begun("east", "train-3")
    shutil.rmtree(rooms.home / "south" / FAULTS)
    started = time.monotonic()
    rooms.start("south")
    slow.unlink()
    rooms.wait(lambda: run.node_of("south") != node, "south to be back")
    took("it is started again, until it takes part", started)
    _, *rows = run.ended()
    assert (rows[0]["answered"], absent(rows[0])) == (3, [])
    ((participant, reason),) = absent(rows[1])
    assert participant == 2
    assert "Node Unavailable" in reason
    assert absent(rows[2]) == [(2, f"south has left: its node {node} is offline")]
    assert (rows[-1]["answered"], absent(rows[-1])) == (3, [])
    down = [later["bytes_down"] - sooner["bytes_down"] for sooner, later in pairwise(rows)]
    assert 3 * down[1] == 2 * down[-1], "who has left costs no bytes"


# ----------------------------------------------------------------------------- the server's side dies


def begun_run(rooms: Rooms) -> tuple[Run, Path]:
    """Hand in a run, and return it once its first arm is finished and south holds its teacher back."""
    held = rooms.tell("south", "train.teacher-0", "hold")
    run = rooms.run(**{"rounds.horizon": 1})
    rooms.begun("south", "train.teacher-0")
    return run, held


def assert_it_is_taken_up(rooms: Rooms, run: Run, twin: Path) -> None:
    """Hand a run in again: what was finished is kept, the rest is as if nothing had happened."""
    kept = run.rows()
    assert [(row["arm"], row["round"]) for row in kept] == [("cold", 0), ("cold", 1)]
    rows = run.again().ended()
    assert rows[:2] == kept
    assert [(row["arm"], row["round"], row["answered"]) for row in rows[2:]] == [
        ("consolidated", 0, 3),
        ("consolidated", 1, 3),
    ]
    assert run.hashes() == hashes_in_process(rooms, twin, **{"rounds.horizon": 1})
    assert [one["name"] for one in run.roster()["participants"]] == NAMES
    for name in NAMES:
        rooms.wait(lambda name=name: not clients(rooms.devices[name]), f"{name} to have no client left")


def failed(rooms: Rooms, run: Run) -> bool:
    """Return whether the SuperLink says so of a run."""
    return rooms.whole.status(run.run_id) == "finished:failed"


def test_a_superlink_that_is_killed_is_started_again_and_the_run_handed_in_again(
    rooms: Rooms, took: Any, tmp_path: Path
) -> None:
    """Devices wait for it and are the same nodes; of what it had started at most its ServerApp is left.

    Flower's own way out of that process waits for a lock, now and then for ever.
    """
    run, held = begun_run(rooms)
    nodes, starts = rooms.online(), [device.process.pid for device in rooms.devices.values()]
    family = psutil.Process(rooms.whole.superlink.pid).children(recursive=True)
    assert any("flwr-serverapp" in word for one in family for word in one.cmdline())
    rooms.whole.superlink.kill()
    killed = time.monotonic()
    rooms.whole.superlink.wait(10)
    _, left = psutil.wait_procs(family, timeout=40)
    assert all(any("flwr-serverapp" in word for word in one.cmdline()) for one in left)
    took(f"a SuperLink is killed, until what it had started has ended but for {len(left)}", killed)
    for one in left:
        one.kill()
    held.unlink()
    started = time.monotonic()
    rooms.whole.start()
    rooms.wait(lambda: rooms.online() == nodes, "devices that are back")
    took("a SuperLink is started again, until all devices are back", started)
    assert [
        device.process.pid for device in rooms.devices.values() if device.process.poll() is None
    ] == starts
    assert_it_is_taken_up(rooms, run, tmp_path)
    rooms.wait(lambda: failed(rooms, run), "a run that has failed")
    took("a SuperLink is started again, until it says that the run has failed, at most", started)


def test_a_serverapp_that_is_killed_costs_the_run_which_is_handed_in_again(
    rooms: Rooms, took: Any, tmp_path: Path
) -> None:
    run, held = begun_run(rooms)
    family = psutil.Process(rooms.whole.superlink.pid).children(recursive=True)
    (server,) = [one for one in family if any("flwr-serverapp" in word for word in one.cmdline())]
    server.kill()
    killed = time.monotonic()
    held.unlink()
    assert_it_is_taken_up(rooms, run, tmp_path)
    rooms.wait(lambda: failed(rooms, run), "a run that has failed")
    took("a ServerApp is killed, until the SuperLink says that the run has failed", killed)
    assert all(device.process.poll() is None for device in rooms.devices.values())
