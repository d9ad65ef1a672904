"""``kdfed deploy demo``: a whole federation of real processes on this machine, from certificates to the page.

It writes images of three devices and of a server, a deployment with TLS and keys for the loopback interface,
starts the SuperLink and three devices (``kdfed node``), hands the experiment to ``flwr run`` as anybody
would, and stops everything it started, however it ends (:mod:`simulations.engines.home`).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from kdfed.data import load_source
from kdfed.errors import RunError, one_line
from kdfed.records import RunFolder
from kdfed.settings import DataSettings
from simulations.deploy.checking.network import check_superlink
from simulations.deploy.layout import CA_CERTIFICATE, CONNECTION, DEVICES, OPERATOR, START, SUPERLINK
from simulations.deploy.registering import flower_of, register
from simulations.deploy.settings import Plan
from simulations.deploy.writing import initialise
from simulations.engines.flower import APP
from simulations.engines.home import MARK, temporary_home

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

HOLDERS = {"north": (0, 1, 2, 3), "east": (3, 4, 5, 6), "south": (6, 7, 8, 9)}
"""Which digits each device has images of; the server's own images are of all."""

SERVER_IMAGES = 150
"""Images of each digit that are the server's own."""

WHY = "a demonstration of kdfed deploy"
"""What its experiment says of its rounds, by which its records are known again."""

PATIENCE = 120.0
"""Seconds that the SuperLink, and then the devices, may take to be there."""

Say = Callable[[str], None]


def experiment(images: Path, rounds: int) -> dict[str, object]:
    """Return the experiment of the demonstration: a cold and a consolidated start of the small CNN."""
    return {
        "name": "devices",
        "seeds": [0],
        "data": {
            "source": "devices",
            "classes": list(DIGITS),
            "shape": [1, 14, 14],
            "normalise": {"mean": [0.1307], "std": [0.3081]},
        },
        "partition": {"kind": "devices", "participants": len(HOLDERS)},
        "server-data": {
            "source": f"folder:{images / 'server'}",
            "splits": {"test": 0.1, "evaluation": 0.4, "validation": 0.1, "transfer": 0.4},
        },
        "model": {"name": "cnn"},
        "local": {"epochs": 2, "batch-size": 32, "lr": 0.05, "momentum": 0.9},
        "teachers": {"epochs": 5, "batch-size": 32, "lr": 0.05, "label-counts": {"send": True}},
        "consolidation": {"ensemble": "label-counts", "temperature": 3.0, "epochs": 20},
        "rounds": {"horizon": rounds, "why": WHY},
        "targets": ["90%-of-converged"],
        "baseline": "cold",
        "arms": {"cold": {"start": "random"}, "consolidated": {"start": "consolidated"}},
    }


def write_images(folder: Path) -> None:
    """Write MNIST-5k as one folder of PNG files a class: for the server, and for each device its own."""
    from PIL import Image

    data = load_source(DataSettings(source="mnist5k"))
    generator = np.random.default_rng(0)
    for digit, name in enumerate(DIGITS):
        order = generator.permutation(np.flatnonzero(data.labels == digit))
        holders = [holder for holder, digits in HOLDERS.items() if digit in digits]
        parts = [order[:SERVER_IMAGES], *np.array_split(order[SERVER_IMAGES:], len(holders))]
        for holder, rows in zip(["server", *holders], parts, strict=True):
            own = folder / holder / name
            own.mkdir(parents=True)
            for row in rows:
                Image.fromarray(data.inputs[row, 0]).save(own / f"{row:04d}.png")


def run_demo(out: Path, rounds: int, say: Say) -> None:
    """Run the demonstration.

    Parameters
    ----------
    out
        Its run folder. Records of an earlier demonstration there are replaced; anything else is refused.
    rounds
        Federated rounds of each arm.
    say
        Is told what happens, a line at a time.

    Raises
    ------
    RunError
        If a process does not start, or the run leaves no summary.
    """
    _make_room(out)
    with temporary_home() as home, ExitStack() as stack:
        processes = Processes(home)
        stack.callback(processes.stop)
        say("images of three devices and of the server")
        write_images(home / "images")
        deployment, link = _deployed(home)
        say(f"a SuperLink with TLS and keys on {link}")
        processes.start("superlink", ["sh", str(deployment / SUPERLINK / START)])
        authority = deployment / SUPERLINK / CA_CERTIFICATE

        def answers() -> bool:
            return all(one.level == "fine" for one in check_superlink(link, authority, must_run=True))

        processes.until("the SuperLink", answers)
        register(deployment, lambda name, node: say(f"registered {name}"))
        for name in HOLDERS:
            command = [sys.executable, "-m", "simulations.cli", "node", str(deployment / DEVICES / name)]
            processes.start(name, command)
        flower = flower_of(deployment)

        def all_online() -> bool:
            return sum(node.status == "online" for node in flower.nodes()) == len(HOLDERS)

        processes.until("three devices", all_online)
        say("three devices are online; flwr run")
        file = home / "devices.yaml"
        file.write_text(yaml.safe_dump(experiment(home / "images", rounds), sort_keys=False))
        settings = f'experiment = "{file}"\nout = "{out.absolute()}"\n'
        (home / "run.toml").write_text(settings, encoding="utf-8")
        processes.wait(
            ["flwr", "run", str(APP), CONNECTION, "--stream", "--run-config", str(home / "run.toml")],
            deployment / OPERATOR,
        )
        if not (out / "summary.json").exists():
            raise RunError(f"the run left no summary in {out}: {processes.tail('superlink')}")
        failures = RunFolder(out).read_summary()["failures"]
        if failures:
            raise RunError(
                "\n".join(f"{one['arm']}, seed {one['seed']}: {one['reason']}" for one in failures)
            )


def _make_room(out: Path) -> None:
    """Remove the records of an earlier demonstration, and of nothing else: any devices leave a roster."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        kept = yaml.safe_load((out / "experiment.yaml").read_text(encoding="utf-8"))
        was = kept["rounds"]["why"] == WHY
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        was = False
    if not was or out.is_symlink():
        raise RunError(f"expected a new folder, or that of an earlier demonstration, got {out}; name another")
    shutil.rmtree(out)


def _deployed(home: Path) -> tuple[Path, str]:
    """Write a deployment on free ports of the loopback interface; return its folder and address."""
    with ExitStack() as stack:  # all at once, so that they differ
        sockets = [stack.enter_context(socket.socket()) for _ in range(1 + len(HOLDERS))]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        port, *others = [one.getsockname()[1] for one in sockets]
    devices = [
        {"name": name, "data": f"folder:{home / 'images' / name}", "device": "cpu", "port": own}
        for name, own in zip(HOLDERS, others, strict=True)
    ]
    plan = {"superlink": {"hosts": ["127.0.0.1", "localhost"], "port": port}, "participants": devices}
    initialise(home / "deployment", Plan.model_validate(plan))
    return home / "deployment", f"127.0.0.1:{port}"


@dataclass
class Processes:
    """The processes of a demonstration; each carries the mark of its home, and writes a log there.

    Parameters
    ----------
    home
        A :func:`~simulations.engines.home.temporary_home`.
    """

    home: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def _environment(self, flower_home: Path | None = None) -> dict[str, str]:
        scripts = sysconfig.get_path("scripts")
        own = {} if flower_home is None else {"FLWR_HOME": str(flower_home)}
        path = os.pathsep.join([scripts, os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", MARK: str(self.home), **own}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process that runs until it is stopped."""
        with (self.home / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours: devices leave before their SuperLink
            )

    def wait(self, command: Sequence[str], flower_home: Path) -> None:
        """Run a command to its end; what it prints is shown.

        Raises
        ------
        RunError
            If it fails.
        """
        done = subprocess.run(  # noqa: S603
            command, env=self._environment(flower_home), cwd=self.home, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise RunError(f"{' '.join(command[:2])} ended with exit code {done.returncode}")

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until something holds.

        Raises
        ------
        RunError
            If a process has ended, or the time is over.
        """
        end = time.monotonic() + PATIENCE
        while True:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise RunError(f"{name} ended with exit code {process.returncode}: {self.tail(name)}")
            with suppress(RunError):
                if holds():
                    return
            if time.monotonic() > end:
                logs = "; ".join(f"{name}: {self.tail(name)}" for name in self._running)
                raise RunError(f"expected {what} within {PATIENCE:g} seconds, got none; {logs}")
            time.sleep(0.3)

    def tail(self, name: str) -> str:
        """Return the last lines of a log, as one."""
        text = (self.home / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return one_line(" | ".join(text.splitlines()[-5:]), 1000) or "its log is empty"

    def stop(self) -> None:
        """Ask all to end, the SuperLink last; what does not is killed with the home."""
        for name, process in reversed(self._running.items()):
            if name != "superlink":
                process.send_signal(signal.SIGTERM)
        for name, process in reversed(self._running.items()):
            if name == "superlink":
                process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
