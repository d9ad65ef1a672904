"""``kdfed node`` beside a real SuperLink: forked clients, one that dies, and what is left when it ends."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.nodes.federation import (
    Device,
    Federation,
    clients,
    federation,
    processes,
    read,
    supernode,
)
from tests.processes import free_port, until

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("federation"), free_port()) as started:
        yield started


@pytest.fixture(params=[False], ids=["warm"])
def device(whole: Federation, request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device that is ready, the only one of the federation."""
    started = whole.device(f"device-{len(whole.devices)}", free_port(), plain=request.param)
    try:
        started.ready()
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


def assert_nothing_is_left(device: Device, before: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(before, timeout=15)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", device.port))


def test_forked_clients_answer_and_one_that_is_killed_costs_one_message(
    whole: Federation, device: Device
) -> None:
    first, second = whole.run(exchanges=2, work="train")
    replies = [first["replies"][0], second["replies"][0]]
    assert len({reply["pid"] for reply in replies}) == 2
    assert {reply["parent"] for reply in replies} == {device.process.pid}
    assert [(reply["torch"], reply["imported"], reply["dynamo"]) for reply in replies] == [(1, 0, 0)] * 2
    until(lambda: not clients(device), 30, "children that have ended")
    assert [one for one in processes(device) if one.status() == psutil.STATUS_ZOMBIE] == []

    _, out = whole.begin(exchanges=2, work="wait")
    (client,) = until(lambda: clients(device), 60, "a client")
    until(lambda: "waits" in device.said(), 60, "a client that has begun")
    client.kill()
    killed = time.monotonic()
    first, second = until(lambda: lines if len(lines := read(out)) == 2 else None, 60, "two exchanges")
    assert time.monotonic() - killed < 40, "Flower's own answer comes after a minute"
    assert "ended by SIGKILL" in first["replies"][0]["error"]
    assert second["replies"][0]["parent"] == device.process.pid
    assert "ended by SIGKILL" in device.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_in_order(whole: Federation, device: Device, number: signal.Signals) -> None:
    """The SuperLink hears of it: it would otherwise refuse the same key for a minute."""
    whole.begin(exchanges=1, work="wait")
    until(lambda: "waits" in device.said(), 60, "a client that has begun")
    before = processes(device)
    assert len(before) == 3
    left = whole.log().count("DeactivateNode] Deactivated")
    assert device.stop(number) == 0
    assert "it has left the SuperLink" in device.said()
    assert whole.log().count("DeactivateNode] Deactivated") == left + 1
    assert_nothing_is_left(device, before)


def test_a_node_that_is_killed_takes_its_supernode_along_in_order(device: Device) -> None:
    before = processes(device)
    device.process.kill()
    device.process.wait()
    assert_nothing_is_left(device, before)
    assert "SuperNode terminated gracefully" in device.said()


@pytest.mark.parametrize("device", [True], ids=["plain"], indirect=True)
def test_in_an_untested_release_flower_answers_by_itself(whole: Federation, device: Device) -> None:
    assert "each message starts a process of its own" in device.said()
    (line,) = whole.run(exchanges=1)
    assert line["replies"][0]["parent"] != device.process.pid
    before = processes(device)
    assert device.stop() == 0
    assert_nothing_is_left(device, before)


def test_a_supernode_that_dies_ends_the_node(device: Device) -> None:
    """The last test, because the SuperLink takes it for present for a minute."""
    before = processes(device)
    supernode(device).kill()
    assert device.process.wait(30) == 1
    assert "error: the SuperNode has ended: it was killed by SIGKILL" in device.said()
    assert_nothing_is_left(device, before)
