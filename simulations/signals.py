"""How the command ends when it is told to: one rule for every engine and every command.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is closed) all raise ``KeyboardInterrupt``, so that whatever
runs unwinds and stops what it started. Then one line on stderr says where the records are, and the exit code
is 128 plus the signal's number: 130, 143, 129.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a command to end; Windows has no SIGHUP."""

PATIENCE = 10.0
"""Seconds in which a further signal is the same wish: it must not interrupt the unwinding. Later it raises
again, because code that is not ours may have lost the first."""


@dataclass
class _Wish:
    """The signal that asked for the end, when it came, and where records lie meanwhile."""

    number: int | None = None
    since: float = 0.0
    records: Path | None = None

    def take(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.number is not None and now - self.since < PATIENCE:
            return
        if self.number is None:
            self.number = number
        self.since = now
        raise KeyboardInterrupt

    def line(self, number: int) -> str:
        where = "" if self.records is None else f" Recorded so far: {self.records}"
        return f"Interrupted by {signal.Signals(number).name}.{where}"


_WISHES: list[_Wish] = []  # of the commands that run: signals belong to the process


def exit_code(command: Callable[[], int], *, last: bool = False) -> int:
    """Run a command, and return its exit code, or that of the signal that ended it.

    Parameters
    ----------
    command
        Returns its exit code; 130 where it made that of a ``KeyboardInterrupt``.
    last
        Whether the process ends with it. Then signals that follow the first stay ignored until it is gone.
    """
    wish = _Wish()
    _WISHES.append(wish)
    try:
        with _handled(wish):
            code = command()
    except BaseException:
        if wish.number is None:
            raise
        code = 128 + wish.number  # whatever came of unwinding, e.g. a terminal that is gone
    finally:
        _WISHES.pop()
    interrupted = 128 + signal.SIGINT
    if code == 0 or (code != interrupted and wish.number is None):
        return code
    number = signal.SIGINT if wish.number is None else wish.number
    if last and threading.current_thread() is threading.main_thread():
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
    _tell(wish.line(number))
    return 128 + number


@contextmanager
def recording_in(folder: Path) -> Iterator[None]:
    """Let an interruption inside a ``with`` block name this folder."""
    if _WISHES:
        _WISHES[-1].records = folder
    yield
    if _WISHES:
        _WISHES[-1].records = None


@contextmanager
def held() -> Iterator[None]:
    """Hold signals back while something is cleaned up, so that a second one cannot leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def withheld(but: Collection[int] = ()) -> Iterator[None]:
    """Let processes that are started inside never get a signal, which terminals and ``timeout`` send to all.

    Else they would end before this process could stop them in order.

    Parameters
    ----------
    but
        Signals that they get all the same.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS} - {*but})  # processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled(wish: _Wish) -> Iterator[None]:
    """Listen for signals, but for those that are ignored: ``nohup`` ignores SIGHUP, ``&`` SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, wish.take)
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[Any, object]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: it was not set from Python, and cannot be set again
            signal.signal(number, handler)  # type: ignore[arg-type]


def _tell(line: str) -> None:
    """Print a line on stderr, unless it is gone with the terminal."""
    try:
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)  # else Python would fail once more when it ends
        os.dup2(nothing, sys.stdout.fileno())
        os.dup2(nothing, sys.stderr.fileno())
