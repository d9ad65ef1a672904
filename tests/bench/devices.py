"""What a device takes, with real processes on one machine: seconds an exchange, memory, what is installed.

    python tests/bench/devices.py

starts a SuperLink without TLS and devices by ``kdfed node``, and sends them exchanges with a small network,
of which each makes 63 steps. Memory is the summed PSS of all processes of a device (see memory.py), of one
that is alone on the machine, since devices on one machine share what they have loaded. An exchange is timed
at the server, from the first message sent to the last reply. Idle devices were left alone for 35 s before.

``--plain`` takes Flower's own way instead, which starts a process a message.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from statistics import median

import psutil
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(1, str(Path(__file__).parent))

from tests.nodes.federation import Device, Federation, federation  # noqa: E402
from tests.processes import until  # noqa: E402

IDLE_SECONDS = 35
"""After so long a SuperNode asks every 3 s for messages, as Flower's does."""


# ----------------------------------------------------------------------------- memory


def pss(device: Device) -> float:
    """Return the summed PSS of a device's processes in MB."""
    found = 0
    try:
        node = psutil.Process(device.process.pid)
        for process in (node, *node.children(recursive=True)):
            try:
                found += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return found / 1e6


class Peak:
    """Samples a device's memory in a thread."""

    def __init__(self, device: Device) -> None:
        self.device, self.most, self._done = device, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, pss(self.device))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


# ----------------------------------------------------------------------------- what is installed

TORCH = "torch"


def closure(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Return the installed packages that a package needs, itself included."""
    waiting = [(canonical(name), extra) for extra in ("", *extras)]
    seen: set[tuple[str, str]] = set()
    found: set[str] = set()
    while waiting:
        one, extra = waiting.pop()
        if (one, extra) in seen:
            continue
        seen.add((one, extra))
        try:
            needed = [Requirement(text) for text in distribution(one).requires or []]
        except PackageNotFoundError:
            continue
        found.add(one)
        for wanted in needed:
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(canonical(wanted.name), more) for more in ("", *wanted.extras)]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def megabytes(names: Iterable[str]) -> float:
    """Return what the files of some packages take on the disk."""
    total = 0
    for name in names:
        for file in distribution(name).files or ():
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def tell_installed() -> None:
    """Print what a device installs; torch, and what nothing but torch needs, apart."""
    for what, names in (("base", closure("kdfed")), ("with [edge]", closure("kdfed", ("edge",)))):
        direct = {canonical(Requirement(text).name) for text in distribution("kdfed").requires or []}
        rest = {"kdfed"}.union(*(closure(one) for one in (direct & names) - {TORCH})) - {TORCH}
        print(f"installed, {what}: {megabytes(rest):.0f} MB in {len(rest)} packages")
    alone = closure("kdfed") - rest
    print(f"torch {version(TORCH)} and what only it needs: {megabytes(alone):.0f} MB")


# ----------------------------------------------------------------------------- exchanges


def exchanges(whole: Federation, nodes: int, count: int, pause: float) -> list[float]:
    """Return the seconds of each exchange."""
    lines = whole.run(
        seconds=120 + count * (pause + 90), exchanges=count, nodes=nodes, work="train", pause=float(pause)
    )
    for line in lines:
        if line["lost"] or any("error" in reply for reply in line["replies"]):
            raise SystemExit(f"an exchange was not answered: {line}")
    return [line["seconds"] for line in lines]


def shown(seconds: list[float]) -> str:
    return f"median {median(seconds):.1f} s, from {min(seconds):.1f} to {max(seconds):.1f} ({len(seconds)})"


def measure(whole: Federation, nodes: int, count: int, port: int, plain: bool) -> None:
    """Print what devices take."""
    began = time.monotonic()
    first = whole.device("device-0", port, plain=plain)
    first.ready()
    print(f"ready after {time.monotonic() - began:.1f} s", flush=True)
    time.sleep(2)
    print(f"memory of one device, idle: {pss(first):.0f} MB", flush=True)
    with Peak(first) as peak:
        exchanges(whole, 1, 3, 0.0)
    print(f"memory of one device, most while it trains: {peak.most:.0f} MB", flush=True)
    others = [whole.device(f"device-{number}", port + number, plain=plain) for number in range(1, nodes)]
    for device in others:
        device.ready()
    print(f"exchange, {nodes} devices, right after another: {shown(exchanges(whole, nodes, count, 0.0))}")
    print(f"exchange, {nodes} devices that were idle: {shown(exchanges(whole, nodes, count, IDLE_SECONDS))}")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3, help="devices (default 3)")
    parser.add_argument("--exchanges", type=int, default=6, help="of each kind (default 6)")
    parser.add_argument(
        "--port", type=int, default=43000, help="the first of nodes + 1 ports (default 43000)"
    )
    parser.add_argument("--plain", action="store_true", help="Flower's own way: a process a message")
    options = parser.parse_args()
    tell_installed()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, flwr {version('flwr')}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder), options.port) as whole:
        measure(whole, options.nodes, options.exchanges, options.port + 1, options.plain)
        codes = [device.stop() for device in whole.devices]
        until(lambda: all(code == 0 for code in codes), 1, "devices that leave in order")


if __name__ == "__main__":
    main()
