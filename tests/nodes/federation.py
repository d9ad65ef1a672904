"""A SuperLink, devices run by ``kdfed node``, and the tiny Flower app beside this file, on one machine.

Everything that is started has a folder of its own, and is ended by its process id.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import yaml

from kdfed.private.flwr import HEALTH, superlink_environment
from tests.processes import end, started, until

ROOT = Path(__file__).resolve().parents[2]
APP = Path(__file__).resolve().parent / "app"
BIN = Path(sys.executable).parent


LOOPBACK = "127.0.0.1"


def answers(port: int, host: str = LOOPBACK) -> bool:
    """Return whether a server of Flower's answers on a port."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{HEALTH}", timeout=2) as reply:
            return bool(reply.status == 200)
    except (OSError, HTTPException):  # a connection to a port that nobody has can meet itself
        return False


@dataclass
class Device:
    """A running ``kdfed node``."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self, seconds: float = 240) -> None:
        """Wait until it is known to the SuperLink and warm."""

        def there() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"kdfed node ended with {self.process.returncode}:\n{self.said()}")
            warm = "warm after" in self.said() or "a process of its own" in self.said()
            return "SuperNode ID" in self.said() and warm

        until(there, seconds, "a device that is ready")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def processes(device: Device) -> list[psutil.Process]:
    """Return all of a device, ``kdfed node`` first."""
    node = psutil.Process(device.process.pid)
    return [node, *node.children(recursive=True)]


def supernode(device: Device) -> psutil.Process:
    """Return its SuperNode."""
    (found,) = [one for one in processes(device) if "clients.supernode" in one.cmdline()]
    return found


def clients(device: Device) -> list[psutil.Process]:
    """Return those that answer messages."""
    return [one for one in processes(device)[1:] if one.pid != supernode(device).pid]


PLAIN = """
import sys
from clients import node
node.warm_release = lambda: None
sys.exit(node.main(sys.argv[1:]))
"""


@dataclass
class Federation:
    """A SuperLink without TLS, and what was started for it."""

    home: Path
    port: int
    environment: dict[str, str]
    host: str = LOOPBACK
    devices: list[Device] = field(default_factory=list)
    superlink: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start the SuperLink, which knows what it knew before, and wait until it answers."""
        command = [str(BIN / "flower-superlink"), "--insecure", "--host", self.host, "--port", str(self.port)]
        command += ["--database", str(self.home / "superlink.db")]
        log = self.home / "superlink.log"
        self.superlink = started(command, log, self.environment, self.home, alone=True)
        until(lambda: answers(self.port, self.host), 60, "a SuperLink that answers")

    def log(self) -> str:
        """Return what the SuperLink said."""
        return (self.home / "superlink.log").read_text(errors="replace")

    def prepare(
        self, name: str, port: int, data: str = "folder:images", superlink: str | None = None
    ) -> Path:
        """Write the folder of a device."""
        folder = self.home / name
        (folder / "images").mkdir(parents=True, exist_ok=True)
        values = {
            "superlink": superlink or f"{self.host}:{self.port}",
            "insecure": True,
            "port": port,
            "node-config": {"participant": name, "data": data},
        }
        (folder / "node.yaml").write_text(yaml.safe_dump(values))
        return folder

    def device(
        self,
        name: str,
        port: int,
        *,
        data: str = "folder:images",
        inside: Sequence[str] = (),
        plain: bool = False,
        superlink: str | None = None,
    ) -> Device:
        """Start a device.

        Parameters
        ----------
        name
            Its participant, and its folder.
        port
            Where its SuperNode serves its client.
        data
            Where its examples are.
        inside
            What stands before its command, and becomes it.
        plain
            As in a release of Flower that is not known.
        superlink
            Where it reaches the SuperLink. Default: where that listens.
        """
        folder = self.prepare(name, port, data, superlink)
        command = [sys.executable, "-m", "simulations.cli", "node", str(folder)]
        if plain:
            command = [sys.executable, "-c", PLAIN, str(folder)]
        log = folder / "log"
        log.unlink(missing_ok=True)
        environment = self.environment | {"FLWR_HOME": str(folder / ".flwr")}
        process = started([*inside, *command], log, environment, self.home)
        device = Device(folder, port, process, log)
        self.devices.append(device)
        return device

    def begin(self, **config: Any) -> tuple[str, Path]:
        """Hand in a run of the app; return its id, and the file to which it writes a line an exchange."""
        out = self.home / f"out-{time.monotonic_ns()}.jsonl"
        return self.hand_in(APP, out=str(out), **config), out

    def hand_in(self, app: Path, **config: Any) -> str:
        """Hand in a run of an app, without waiting for it; return its id."""
        words = [f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in config.items()]
        command = [str(BIN / "flwr"), "run", str(app), "local", "--format", "json"]
        command += ["--run-config", " ".join(words)]
        done = subprocess.run(command, env=self.environment, cwd=self.home, capture_output=True, text=True)
        answer = json.loads(done.stdout)
        assert answer.get("success"), done.stdout + done.stderr
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Return what the SuperLink says of a run, as in ``finished:failed``."""
        command = [str(BIN / "flwr"), "ls", "local", "--run-id", run_id, "--format", "json"]
        done = subprocess.run(command, env=self.environment, cwd=self.home, capture_output=True, text=True)
        (found,) = json.loads(done.stdout)["runs"]
        return str(found["status"])

    def run(self, seconds: float = 180, **config: Any) -> list[dict[str, Any]]:
        """Run the app, and return what each exchange wrote."""
        _, out = self.begin(**config)
        wanted = int(config.get("exchanges", 2))
        return until(
            lambda: lines if len(lines := read(out)) == wanted else None, seconds, f"{wanted} exchanges"
        )


def read(out: Path) -> list[dict[str, Any]]:
    """Return the exchanges that a run has written down so far."""
    text = out.read_text() if out.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def federation(home: Path, port: int, host: str = LOOPBACK) -> Iterator[Federation]:
    """Start a SuperLink that listens on a host's address, and end it and its devices on leaving."""
    flower = home / "flower"
    flower.mkdir(parents=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        **superlink_environment(flower),
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
    }
    (flower / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "{host}:{port}"\ninsecure = true\n'
    )
    whole = Federation(home, port, environment, host)
    try:
        whole.start()
        yield whole
    finally:
        for device in whole.devices:
            if device.process.poll() is None:
                device.process.terminate()
        for device in whole.devices:
            end(device.process)
        end(whole.superlink, 15)
        with suppress(ProcessLookupError):
            os.killpg(whole.superlink.pid, signal.SIGKILL)  # ServerApps whose run has not ended
