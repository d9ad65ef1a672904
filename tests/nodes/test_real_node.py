"""``kdfed node`` beside a real SuperLink: forked clients, one that dies, and what is left when it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.nodes.federation import Device, Federation, federation, read, until

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("federation"), free_port()) as started:
        yield started


@pytest.fixture
def device(whole: Federation) -> Iterator[Device]:
    """A device that is ready, the only one of the federation."""
    started = whole.device(f"device-{len(whole.devices)}", free_port())
    try:
        started.ready()
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


def processes(device: Device) -> list[psutil.Process]:
    node = psutil.Process(device.process.pid)
    return [node, *node.children(recursive=True)]


def supernode(device: Device) -> psutil.Process:
    (found,) = [one for one in processes(device) if "clients.supernode" in one.cmdline()]
    return found


def clients(device: Device) -> list[psutil.Process]:
    return [one for one in processes(device)[1:] if one.pid != supernode(device).pid]


def assert_nothing_is_left(device: Device, before: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(before, timeout=15)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", device.port))


def test_each_message_is_answered_by_a_fork_in_which_everything_is_there(
    whole: Federation, device: Device
) -> None:
    first, second = whole.run(exchanges=2, work="train")
    replies = [first["replies"][0], second["replies"][0]]
    assert len({reply["pid"] for reply in replies}) == 2
    assert {reply["parent"] for reply in replies} == {device.process.pid}
    assert [(reply["torch"], reply["imported"], reply["dynamo"]) for reply in replies] == [(1, 0, 0)] * 2
    until(lambda: not clients(device), 15, "children that have ended")
    zombies = [one for one in processes(device) if one.status() == psutil.STATUS_ZOMBIE]
    assert zombies == []


def test_a_client_that_is_killed_costs_one_message(whole: Federation, device: Device) -> None:
    _, out = whole.begin(exchanges=2, work="wait")
    (client,) = until(lambda: clients(device), 60, "a client")
    until(lambda: client.num_threads() > 1, 60, "a client that has begun")
    time.sleep(2)
    client.kill()
    killed = time.monotonic()
    first, second = until(lambda: lines if len(lines := read(out)) == 2 else None, 60, "two exchanges")
    assert time.monotonic() - killed < 30, "Flower's own answer comes after a minute"
    assert "ended by SIGKILL" in first["replies"][0]["error"]
    assert second["replies"][0]["parent"] == device.process.pid
    assert "ended by SIGKILL" in device.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_in_order_and_a_restart_needs_no_pause(
    whole: Federation, device: Device, number: signal.Signals
) -> None:
    _, out = whole.begin(exchanges=1, work="wait")
    until(lambda: clients(device), 60, "a client")
    before = processes(device)
    assert len(before) == 3
    assert device.stop(number) == 0
    assert "it has left the SuperLink" in device.said()
    assert_nothing_is_left(device, before)
    again = whole.device(device.folder.name, device.port)
    try:
        again.ready(60)
    finally:
        assert again.stop() == 0
    assert read(out)[:1] == [] or "error" in read(out)[0]["replies"][0]


def test_a_supernode_that_dies_ends_the_node(device: Device) -> None:
    before = processes(device)
    supernode(device).kill()
    assert device.process.wait(30) == 1
    assert "error: the SuperNode has ended: it was killed by SIGKILL" in device.said()
    assert_nothing_is_left(device, before)


def test_a_node_that_is_killed_takes_its_supernode_along(device: Device) -> None:
    before = processes(device)
    device.process.kill()
    device.process.wait()
    assert_nothing_is_left(device, before)
    assert "SuperNode terminated gracefully" in device.said()


FALLBACK = """
import sys
from clients import node
node.warm_release = lambda: None
sys.exit(node.main(sys.argv[1:]))
"""


def test_in_an_untested_release_flower_answers_by_itself(whole: Federation, tmp_path: Path) -> None:
    prepared = whole.device("untested", free_port())
    prepared.ready()
    assert prepared.stop() == 0
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", FALLBACK, str(prepared.folder)],
            env={**whole.environment, "FLWR_HOME": str(prepared.folder / ".flwr")},
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    device = Device(prepared.folder, prepared.port, process, log)
    try:
        until(lambda: "SuperNode ID" in device.said(), 60, "a SuperNode")
        assert "each message starts a process of its own" in device.said()
        (line,) = whole.run(exchanges=1)
        assert line["replies"][0]["parent"] != process.pid
        before = processes(device)
        assert device.stop() == 0
        assert_nothing_is_left(device, before)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(30)
