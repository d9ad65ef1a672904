"""The machine: its processor, Python, packages, PyTorch, clock, memory and disk."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from simulations.deploy.checking.findings import Finding, fine, note, wrong

MEBIBYTE = 2**20

LEAST_MEMORY, ENOUGH_MEMORY = 600 * MEBIBYTE, 1024 * MEBIBYTE
"""Free bytes below which a device cannot train, and below which it may not."""

LEAST_DISK, ENOUGH_DISK = 200 * MEBIBYTE, 1024 * MEBIBYTE
"""The same of the disk: what is kept between rounds, apps and messages."""

_PROBE = """
import json, torch
found = {"version": torch.__version__, "gpus": torch.cuda.device_count(),
         "mps": torch.backends.mps.is_available(), "sum": float(torch.ones(3).sum())}
print(json.dumps(found))
"""

_PATIENCE = 300  # seconds in which PyTorch is imported, also from a memory card


def check_processor() -> Finding:
    """Say whether this is a system of 64 bits."""
    if sys.maxsize > 2**32:
        return fine("64-bit", f"{platform.machine()}, Python {platform.python_version()}")
    return wrong(
        "64-bit",
        f"expected a system of 64 bits, for which there is PyTorch, got {platform.machine()} with a Python "
        "of 32 bits; install the system's 64-bit edition (for a Raspberry Pi: Raspberry Pi OS, 64-bit)",
    )


def check_versions(expected: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether packages are those of the deployment.

    kdfed must be the same, Flower the same up to its patch, PyTorch of the same major version: another one
    gives other bits.
    """
    allowed = _allowed("flwr")
    for package, wanted in expected.items():
        try:
            here = version(package)
        except PackageNotFoundError:
            yield wrong(
                package, f"expected {package} {wanted}, got none; pip install {package}=={_public(wanted)}"
            )
            continue
        change = f"pip install {package}=={_public(wanted)}, here or on the other machines"
        if (
            package == "flwr"
            and allowed is not None
            and not allowed.specifier.contains(here, prereleases=True)
        ):
            yield wrong(
                package, f"expected {allowed.specifier}, which this kdfed knows, got {here}; {change}"
            )
        elif _alike(package, here, wanted):
            yield fine(package, here)
        elif package == "torch" and here.partition(".")[0] == wanted.partition(".")[0]:
            yield note(package, f"the deployment has {wanted}, this machine {here}: results differ in bits")
        else:
            yield wrong(package, f"expected the deployment's {wanted}, got {here}; {change}")


def _alike(package: str, here: str, wanted: str) -> bool:
    try:
        mine, theirs = Version(here), Version(wanted)
    except InvalidVersion:
        return here == wanted
    if package == "flwr":
        return mine.release[:2] == theirs.release[:2]
    return mine.public == theirs.public


def _public(text: str) -> str:
    return text.partition("+")[0]


def _allowed(package: str) -> Requirement | None:
    """Return which releases of a package this kdfed requires."""
    try:
        listed = [Requirement(line) for line in requires("kdfed") or ()]
    except PackageNotFoundError:
        return None
    return next((one for one in listed if one.name == package and one.marker is None), None)


def check_torch(device: str | None) -> Iterator[Finding]:
    """Yield whether PyTorch works, in a process of its own, and has the device.

    Parameters
    ----------
    device
        The node-config's; None: any will do.
    """
    try:
        done = _probe()
    except subprocess.TimeoutExpired:
        yield wrong("torch imports", f"expected PyTorch to be imported, it took more than {_PATIENCE} s")
        return
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = {
            signal.SIGILL: "its wheel is for another processor; install that for this one",
            signal.SIGKILL: "most likely for want of memory; free some, or add swap",
        }.get(signal.Signals(-done.returncode), "install it anew")
        yield wrong("torch imports", f"expected PyTorch to be imported, {name} ended it: {why}")
        return
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason was given"]
        yield wrong("torch imports", f"expected PyTorch to be imported: {lines[-1][:300]}; install it anew")
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    has = ["cpu", *(f"cuda:{gpu}" for gpu in range(found["gpus"])), *(["mps"] if found["mps"] else [])]
    yield fine("torch imports", f"{found['version']}; it has {', '.join(has)}")
    wanted = "cuda:0" if device == "cuda" else device
    if wanted not in (None, "auto", *has):
        yield wrong(
            "device", f"expected one of {', '.join(has)} or auto, got {device!r}; correct node-config.device"
        )


@cache
def _probe() -> subprocess.CompletedProcess[str]:
    """Import PyTorch in a process of its own; once, for all devices of a machine."""
    command = [sys.executable, "-c", _PROBE]
    return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)  # noqa: S603


def check_clock(earliest: datetime, now: datetime) -> Finding:
    """Say whether the time can be true.

    Parameters
    ----------
    earliest
        When the deployment was made, as its certificates say.
    now
        The time, with a zone.
    """
    if now < earliest:
        return wrong(
            "clock",
            f"expected a time after {earliest:%Y-%m-%d %H:%M} UTC, when the deployment was made, got "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC; timedatectl set-ntp true",
        )
    return fine("clock", f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC")


def check_memory(*, running: bool) -> Finding:
    """Say whether there is memory to train.

    Parameters
    ----------
    running
        Whether kdfed seems to run already, and has what it needs.
    """
    free = free_memory()
    if free is None:
        return note("memory", "this system does not tell how much is free")
    text = f"{free / MEBIBYTE:.0f} MiB are free"
    if free < LEAST_MEMORY and not running:
        least = LEAST_MEMORY / MEBIBYTE
        return wrong("memory", f"expected at least {least:.0f} MiB, {text}; end other programs, or add swap")
    if free < ENOUGH_MEMORY:
        return note("memory", f"{text}: a large model may not fit")
    return fine("memory", text)


def free_memory() -> int | None:
    """Return the bytes that a new process can have, swap included; None where the system does not tell."""
    try:
        rows = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        sizes = {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}
        free = sizes["MemAvailable"] + sizes.get("SwapFree", 0)
    except (OSError, ValueError, KeyError, IndexError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return free
    return max(0, min(free, limit))


def check_disk(folders: Iterable[Path]) -> Iterator[Finding]:
    """Yield whether there is room where something is kept, once for each disk."""
    seen = set()
    for folder in folders:
        place = next((one for one in (folder, *folder.parents) if one.exists()), None)
        if place is None:
            continue
        disk = os.stat(place).st_dev
        if disk in seen:
            continue
        seen.add(disk)
        free = shutil.disk_usage(place).free
        text = f"{free / MEBIBYTE:.0f} MiB are free at {place}"
        if free < LEAST_DISK:
            least = LEAST_DISK / MEBIBYTE
            yield wrong(
                "disk", f"expected at least {least:.0f} MiB, {text}; make room, or choose another store"
            )
        elif free < ENOUGH_DISK:
            yield note("disk", text)
        else:
            yield fine("disk", text)
