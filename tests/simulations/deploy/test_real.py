"""A real SuperLink from a written deployment, and who may connect to it."""

from __future__ import annotations

import os
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from clients.device_folder import DeviceFolder, read_node_file
from kdfed.errors import RunError
from simulations.cli import main
from simulations.deploy.checking.folders import check
from simulations.deploy.checking.network import check_superlink
from simulations.deploy.credentials import new_authority, new_device_key
from simulations.deploy.flower import Flower
from simulations.deploy.layout import CONNECTION
from simulations.deploy.pages import connection
from simulations.deploy.reading import read_deployment
from simulations.deploy.registering import flower_of, registered
from simulations.deploy.secret import write_secret
from simulations.deploy.settings import Plan
from simulations.deploy.writing import initialise, renew
from tests.processes import end, free_port, started, until

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600), pytest.mark.xdist_group("deploy")]

SCRIPTS = sysconfig.get_path("scripts")
PATIENCE = 90.0


class Process:
    """A process of Flower's with its log; whatever it started ends with it."""

    def __init__(self, command: list[str], log: Path, home: Path) -> None:
        environment = {
            **os.environ,
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        self._log = log
        self._popen = started(command, log, environment, alone=True)
        self._seen: set[psutil.Process] = set()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        self._look()
        return self._popen.poll()

    def _look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._seen |= set(psutil.Process(self._popen.pid).children(recursive=True))

    def child(self, word: str) -> psutil.Process:
        """Return the child whose command has a word."""
        self._look()
        (found,) = [one for one in psutil.Process(self._popen.pid).children() if word in one.cmdline()]
        return found

    def stop(self) -> None:
        self._look()
        end(self._popen)
        for process in psutil.wait_procs(list(self._seen), timeout=20)[1]:
            process.kill()


class Link:
    """A deployment whose SuperLink runs here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(3)]
        (folder.parent / "images" / "zero").mkdir(parents=True)
        (folder.parent / "images" / "zero" / "a.png").write_bytes(b"x")
        data = f"folder:{folder.parent}/images"
        rows = [{"name": "north", "data": data, "port": self.ports[1]}, {"name": "south", "data": data}]
        superlink = {"hosts": ["127.0.0.1", "localhost"], "port": self.ports[0]}
        initialise(folder, Plan.model_validate({"superlink": superlink, "participants": rows}))
        self.flower = flower_of(folder)
        self._process: Process | None = None
        self._others: list[Process] = []

    def start(self) -> None:
        command = ["sh", str(self.folder / "superlink" / "start.sh")]
        self._process = Process(command, self.folder.parent / "superlink.log", self.folder)
        until(self._answers, PATIENCE, "the SuperLink")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.code is None, self._process.log()
        authority = self.folder / "superlink" / "ca.crt"
        address = f"127.0.0.1:{self.ports[0]}"
        return all(one.level == "fine" for one in check_superlink(address, authority, must_run=True))

    def stop(self) -> None:
        for process in [*self._others, *([self._process] if self._process else [])]:
            process.stop()

    def node(self, device: DeviceFolder, folder: Path, **changes: str | None) -> Process:
        """Start a SuperNode with what ``node.yaml`` says; a change of None leaves a word out."""
        words = {
            "--superlink": device.superlink,
            "--root-certificates": str(folder / str(device.root_certificates)),
            "--auth-supernode-private-key": str(folder / str(device.key)),
            "--port": str(device.port),
            **{f"--{name.replace('_', '-')}": value for name, value in changes.items()},
        }
        command = [f"{SCRIPTS}/flower-supernode"]
        for option, value in words.items():
            command += [] if value is None else [option, value] if value else [option]
        return self._begin(command, folder / "state")

    def device(self, folder: Path) -> Process:
        """Start ``kdfed node``."""
        return self._begin(
            [f"{SCRIPTS}/python", "-m", "simulations.cli", "node", str(folder)], folder / "state"
        )

    def _begin(self, command: list[str], home: Path) -> Process:
        process = Process(command, self.folder.parent / f"node{len(self._others)}.log", home)
        self._others.append(process)
        return process

    def online(self) -> set[str]:
        return {node.node_id for node in self.flower.nodes() if node.status == "online"}


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    link = Link(tmp_path_factory.mktemp("real") / "a deployment")
    try:
        link.start()
        yield link
    finally:
        link.stop()


@pytest.fixture
def north(link: Link) -> tuple[DeviceFolder, Path]:
    folder = link.folder / "devices" / "north"
    return read_node_file(folder), folder


def test_a_registered_device_connects_and_status_shows_it(link, north, capsys):
    assert main(["deploy", "register", str(link.folder)]) == 0
    assert main(["deploy", "register", str(link.folder)]) == 0
    assert "0 registered now, 2 before" in capsys.readouterr().out
    ids = registered(link.folder)
    process = link.node(*north)
    until(lambda: ids["north"] in link.online(), PATIENCE, "north")
    assert link.online() == {ids["north"]}
    assert main(["deploy", "status", str(link.folder)]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.split()}
    assert rows["north"] == ["online", "now", ids["north"]]
    assert rows["south"] == ["registered", ids["south"]]
    process.stop()  # a graceful stop is told at once
    assert link.online() == set()


def test_a_check_of_a_device_finds_nothing_wrong(link, north):
    assert [str(one) for one in check(north[1]) if one.level == "wrong"] == []
    assert "clock: agrees with the SuperLink's" in "\n".join(map(str, check(north[1])))


def refused(link: Link, process: Process) -> str:
    """Wait until a node gives up, which it does with an error; return its log."""
    until(lambda: process.code is not None, PATIENCE, "the node to give up")
    assert process.code != 0
    assert link.online() == set()
    return process.log()


def test_a_key_that_is_not_registered_is_refused(link, north, tmp_path):
    write_secret(tmp_path / "key", new_device_key("stranger").private)
    log = refused(link, link.node(*north, auth_supernode_private_key=str(tmp_path / "key")))
    assert "exit-codes/305" in log


def test_a_device_without_a_key_is_refused(link, north):
    refused(link, link.node(*north, auth_supernode_private_key=None))


def test_a_superlink_that_another_authority_signed_is_refused(link, north, tmp_path):
    (tmp_path / "ca.crt").write_bytes(new_authority().public)
    log = refused(link, link.node(*north, root_certificates=str(tmp_path / "ca.crt")))
    assert "CERTIFICATE_VERIFY_FAILED" in log


def test_a_device_without_tls_never_connects(link, north):
    """Flower tries for ever: nothing that it sends without TLS is answered."""
    process = link.node(*north, root_certificates=None, auth_supernode_private_key=None, insecure="")
    last = time.monotonic() + 15
    while time.monotonic() < last and process.code is None:
        assert link.online() == set()
        time.sleep(1)
    assert link.online() == set()
    process.stop()
    assert "insecure" in process.log()


def test_a_device_that_crashes_is_refused_until_the_superlink_has_noticed_and_is_the_same_node_then(
    link, north, capsys
):
    assert main(["deploy", "register", str(link.folder)]) == 0
    node = registered(link.folder)["north"]
    first = link.device(north[1])
    until(lambda: node in link.online(), PATIENCE, "north")
    first.child("clients.supernode").kill()
    killed = time.monotonic()
    until(lambda: first.code is not None, PATIENCE, "the device to end")
    assert "it was killed by SIGKILL" in first.log()
    second = link.device(north[1])
    until(lambda: second.code is not None, PATIENCE, "the second start to end")
    assert second.code == 1
    assert "it crashed or was killed less than 60 s ago and is still taken for present" in second.log()
    until(lambda: node not in link.online(), PATIENCE, "the SuperLink to notice")
    third = link.device(north[1])
    until(lambda: node in link.online(), PATIENCE, "north")
    with capsys.disabled():
        print(f"\na device with a key is killed, until it is back: {time.monotonic() - killed:.0f} s")
    assert third.code is None
    third.stop()
    assert link.online() == set()


def test_whoever_runs_experiments_checks_the_certificate_too(link, tmp_path):
    (tmp_path / "superlink").mkdir()
    (tmp_path / "superlink" / "ca.crt").write_bytes(new_authority().public)
    plan = read_deployment(link.folder).plan
    (tmp_path / "config.toml").write_text(connection(plan, tmp_path, insecure=False))
    with pytest.raises(RunError):
        Flower(CONNECTION, tmp_path).nodes()


def test_a_renewed_certificate_is_served_after_a_restart_and_keys_stay_registered(link):
    assert main(["deploy", "register", str(link.folder)]) == 0
    before = {node.node_id for node in link.flower.nodes()}
    assert len(before) == 2
    renew(link.folder)
    link.stop()
    link.start()
    assert {node.node_id for node in link.flower.nodes()} == before
