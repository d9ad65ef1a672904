"""Processes that a test starts: ports, logs, waiting for what they do, and ending them."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

_PORTS = count(45000)


def free_port() -> int:
    """Return a port of the loopback interface that is free, each once."""
    for port in _PORTS:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no port is free")


def until(condition: Callable[[], Found], seconds: float, what: str, every: float = 0.05) -> Found:
    """Return a condition's value once it is true.

    Parameters
    ----------
    condition
        Looked at again and again.
    seconds
        How long, at most.
    what
        For the error.
    every
        Seconds between two looks.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"expected {what} within {seconds:g} s"
        time.sleep(every)
    return found


def started(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    folder: Path | None = None,
    *,
    alone: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a command that writes to a log, behind what is in it.

    Parameters
    ----------
    folder
        Where it runs. Default: here.
    alone
        In a session of its own.
    """
    with log.open("ab") as stream:
        return subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=alone,
        )


def end(process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Tell a process to end, and kill it where it has not within some seconds."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
