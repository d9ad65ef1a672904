"""Devices behind slow links: a network namespace for each, with one way out, which is limited.

It needs root on Linux, ``ip`` and ``tc`` (Debian's iproute2), and the queueing discipline ``tbf``. Where one
of them is missing a test fails: a check that is left out says nothing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SUBNET = "10.203.77"


@dataclass(frozen=True)
class Link:
    """One device's namespace, and its way out.

    Parameters
    ----------
    name
        Of the namespace.
    host
        The server's address on the link; all of them reach the first one's.
    """

    name: str
    host: str

    @property
    def inside(self) -> list[str]:
        """What stands before a command that is run there."""
        return ["ip", "netns", "exec", self.name]

    def traffic(self) -> tuple[int, int]:
        """Return the bytes that the device has received and sent, headers and all."""
        text = run(*self.inside, "cat", "/proc/net/dev")
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{self.name}d:")]
        numbers = line.partition(":")[2].split()
        return int(numbers[0]), int(numbers[8])


def run(*words: str) -> str:
    """Run a command of the system's, and return what it printed."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise AssertionError(f"expected the command {words[0]!r}: install iproute2") from error
    assert done.returncode == 0, (
        f"`{' '.join(words)}` failed (network namespaces need root): {done.stderr.strip()}"
    )
    return done.stdout


@contextmanager
def links(rates: list[str]) -> Iterator[list[Link]]:
    """Make namespaces with these rates both ways, as ``tc`` writes them, and remove them on leaving."""
    made = [
        Link(f"kdf{os.getpid() % 10**6}{'abcdefgh'[number]}", f"{SUBNET}.{4 * number + 1}")
        for number in range(len(rates))
    ]
    try:
        for number, (link, rate) in enumerate(zip(made, rates, strict=True)):
            outer, inner = f"{link.name}h", f"{link.name}d"
            run("ip", "netns", "add", link.name)
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            run("ip", "link", "set", inner, "netns", link.name)
            run("ip", "address", "add", f"{link.host}/30", "dev", outer)
            run("ip", "-n", link.name, "address", "add", f"{SUBNET}.{4 * number + 2}/30", "dev", inner)
            for own in ([], [*link.inside]):
                words = ["qdisc", "add", "dev", inner if own else outer, "root", "tbf"]
                run(*own, "tc", *words, "rate", rate, "burst", "32kbit", "latency", "400ms")
            run("ip", "link", "set", outer, "up")
            run("ip", "-n", link.name, "link", "set", inner, "up")
            run("ip", "-n", link.name, "link", "set", "lo", "up")
            run("ip", "-n", link.name, "route", "add", "default", "via", link.host)
        yield made
    finally:
        for link in made:
            subprocess.run(["ip", "netns", "delete", link.name], capture_output=True)
            subprocess.run(["ip", "link", "delete", f"{link.name}h"], capture_output=True)
