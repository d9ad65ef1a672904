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
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(1, str(Path(__file__).parent))

from tests.nodes.federation import Device, Federation, federation, until  # noqa: E402

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
    """Return the packages that a package needs here, itself included."""
    from packaging.requirements import Requirement

    found: set[str] = set()

    def walk(name: str, extras: tuple[str, ...]) -> None:
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            return
        first = canonical(name) not in found
        found.add(canonical(name))
        for text in needed:
            one = Requirement(text)
            if one.marker is not None:
                wanted = any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
                if not wanted or (not first and "extra" not in str(one.marker)):
                    continue
            elif not first:
                continue
            if canonical(one.name) not in found or one.extras:
                walk(one.name, tuple(one.extras))

    walk(name, extras)
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def megabytes(names: Iterator[str] | set[str]) -> float:
    """Return what the files of some packages take on the disk."""
    total = 0
    for name in names:
        for file in distribution(name).files or ():
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def tell_installed() -> None:
    """Print what a device installs: torch and what only torch needs apart."""
    torch_alone = closure(TORCH)
    base, edge = closure("kdfed"), closure("kdfed", ("edge",))
    for what, names in (("base", base), ("with [edge]", edge)):
        rest = names - torch_alone | (names & needed_without_torch(names))
        print(f"installed, {what}: {megabytes(rest):.0f} MB in {len(rest)} packages")
    print(f"torch {version(TORCH)} and what it needs: {megabytes(torch_alone):.0f} MB")


def needed_without_torch(names: set[str]) -> set[str]:
    """Return those of some packages that something else than torch needs."""
    from packaging.requirements import Requirement

    direct = {canonical(Requirement(text).name) for text in distribution("kdfed").requires or []} - {TORCH}
    found: set[str] = set()
    for one in direct & names:
        found |= closure(one)
    return found - {TORCH}


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
