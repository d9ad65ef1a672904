"""A device: Flower's SuperNode, and a warm client that answers its messages.

``kdfed node DIR`` checks the folder and becomes ``python -m clients.node DIR``, a process with the variables
that libraries read when they are imported. It starts the SuperNode as a child, imports what a client needs,
and forks a process for each message (:mod:`clients.warm`). It sleeps until the SuperNode tells of a message,
a child ends or a signal comes, so an idle device costs little more than the SuperNode's own question every
three seconds.

It ends with 0 when it was asked to (SIGTERM, SIGINT, SIGHUP), and then the SuperNode leaves in order; with 1,
and a line that says why, when the SuperNode has ended by itself.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from clients.device_folder import FILE, DeviceFolder, read_device_folder
from clients.supernode import HOST, arguments
from clients.warm import SIGNALS, Children, preload, unsafe
from kdfed.errors import ConfigError, KdfedError, Mistake, RunError, one_line
from kdfed.private.flwr import (
    WARM_RELEASES,
    NodeTask,
    NodeTasks,
    answer_task,
    node_environment,
    warm_release,
)

HOME = ".flwr"
"""The folder in the device's own where apps are unpacked, unless FLWR_HOME says where."""

PATIENCE = 10.0
"""Seconds in which what was asked to end has to."""

LOOK_SECONDS = 5.0
"""After so long without news, whoever runs clients asks the SuperNode all the same."""


# ----------------------------------------------------------------------------- becoming a node


def become_node(folder: Path) -> NoReturn:
    """Check a device's folder, and replace this process by the one that runs it.

    Raises
    ------
    ConfigError
        If something is wrong with the folder, or its port is taken.
    RunError
        If this system has no processes that take signals: Windows.
    """
    if os.name != "posix":
        raise RunError(f"expected Linux or macOS, got {sys.platform}; run a device there, or in WSL")
    folder = folder.absolute()
    settings = read_device_folder(folder)
    _check_port(settings, folder)
    sys.stdout.flush()
    sys.stderr.flush()
    environment = environment_of(settings, folder)
    os.execve(sys.executable, command(folder), environment)  # noqa: S606


def command(folder: Path) -> list[str]:
    """Return the command of the process that runs a folder; ``-P`` keeps the current directory out of it."""
    return [sys.executable, "-P", "-m", "clients.node", str(folder)]


def environment_of(
    settings: DeviceFolder, folder: Path, given: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables of a device's processes; those that are given stay as they are.

    glibc gives each thread an arena of its own, of which a client that fetches a message with some threads
    never gives anything back: two are enough. Python's commands must be those of this Python.
    """
    return {
        **node_environment(folder / HOME),
        "MALLOC_ARENA_MAX": "2",
        **given,
        "OMP_NUM_THREADS": str(settings.node_config.threads),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }


def _check_port(settings: DeviceFolder, folder: Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, settings.port))
        except OSError as error:
            mistake = Mistake(
                "port",
                f"expected a port of {HOST} that is free, got {settings.port}: {error.strerror}; stop what "
                "has it (another node of this folder?), or take another",
            )
            raise ConfigError(str(folder / FILE), [mistake]) from error


def why_not_warm() -> str:
    """Return why messages must be answered by Flower's own, slower, means; "" where they need not."""
    if not sys.platform.startswith("linux"):
        return f"forking a process that has imported torch is safe on Linux alone, and this is {sys.platform}"
    if warm_release() is None:
        known = " and ".join(WARM_RELEASES)
        return f"the warm client was tried with flwr {known} alone, and this is {version('flwr')}"
    return ""


# ----------------------------------------------------------------------------- being one


@dataclass
class _News:
    """What a SuperNode tells: that there are messages, and in the end why it ended."""

    reading: int
    writing: int
    last: str = ""
    _rest: bytes = field(default=b"", repr=False)

    @classmethod
    def pipe(cls) -> _News:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_inheritable(writing, True)
        return cls(reading, writing)

    def read(self) -> bool:
        """Return whether there are messages."""
        heard = False
        with suppress(BlockingIOError):
            while part := os.read(self.reading, 65536):
                *lines, self._rest = (self._rest + part).split(b"\n")
                for line in lines:
                    heard = heard or not line
                    self.last = line.decode(errors="replace") or self.last
        return heard


class Node:
    """A device that runs.

    Parameters
    ----------
    settings
        With absolute paths.
    """

    def __init__(self, settings: DeviceFolder) -> None:
        self.settings = settings
        self.address = f"{HOST}:{settings.port}"
        self._asked: int | None = None

    def run(self) -> int:
        """Run until it is asked to end, or the SuperNode has ended; return the exit code."""
        reason = why_not_warm()
        if reason:
            _say(f"each message starts a process of its own, which imports torch anew: {reason}")
        with self._listening() as woken:
            news = _News.pipe()
            supernode = self._start(news, warm=not reason)
            os.close(news.writing)
            try:
                if reason:
                    self._wait(supernode, woken)
                else:
                    self._serve(supernode, news, woken)
            finally:
                in_time = self._stop(supernode)
            news.read()
        if self._asked is not None:
            _say("it has left the SuperLink" if in_time and supernode.returncode == 0 else _LATE)
            return 0
        raise RunError(f"the SuperNode has ended: {news.last or _how(supernode.returncode)}")

    def _start(self, news: _News, *, warm: bool) -> subprocess.Popen[bytes]:
        if warm:
            words = [sys.executable, "-P", "-m", "clients.supernode", str(news.writing), str(os.getpid())]
        else:
            words = [str(Path(sys.executable).with_name("flower-supernode"))]
        words += arguments(self.settings, "process" if warm else "subprocess")
        own = self.settings.node_config
        _say(f"{own.participant} of {self.settings.superlink}, data {own.data}")
        return subprocess.Popen(  # noqa: S603
            words, stdin=subprocess.DEVNULL, pass_fds=[news.writing], start_new_session=True
        )

    def _serve(self, supernode: subprocess.Popen[bytes], news: _News, woken: int) -> None:
        """Fork a client for each message until it is time to end."""
        began = time.monotonic()
        preload(self.settings.node_config.data)
        if supernode.poll() is not None:
            return
        self._check_safe()
        _say(f"warm after {time.monotonic() - began:.1f} s: a message forks a process, and imports nothing")
        tasks, children = NodeTasks(self.address), Children()
        try:
            while self._asked is None and supernode.poll() is None:
                for task, code in children.ended():
                    self._see_off(tasks, task, code)
                self._take(tasks, children)
                select.select([news.reading, woken], [], [], LOOK_SECONDS)
                _drain(woken)
                news.read()
        finally:
            children.end(PATIENCE / 2)
            tasks.close()

    def _take(self, tasks: NodeTasks, children: Children) -> None:
        while self._asked is None and (task := tasks.next()) is not None:
            self._check_safe()
            children.fork(partial(answer_task, self.address, task, os.getpid()), task)

    def _check_safe(self) -> None:
        danger = unsafe(self.settings.node_config.threads)
        if danger:
            raise RunError(
                f"this process cannot be forked: {danger}; what starts threads when it is imported?"
            )

    def _see_off(self, tasks: NodeTasks, task: NodeTask, code: int) -> None:
        """Answer for a client that could not."""
        if code == 0:
            return
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        more = ", as the kernel does where memory runs out" if code == -signal.SIGKILL else ""
        if code < 0:
            _say(f"the process that answered a message {how}{more}; the next message gets a new one")
        tasks.fail(task, f"the device's client process {how}{more}")

    def _wait(self, supernode: subprocess.Popen[bytes], woken: int) -> None:
        """Leave everything to Flower until it is time to end."""
        while self._asked is None and supernode.poll() is None:
            select.select([woken], [], [], LOOK_SECONDS)
            _drain(woken)

    def _stop(self, supernode: subprocess.Popen[bytes]) -> bool:
        """Let the SuperNode leave, and end what is left of its processes; return whether it left in time."""
        if supernode.poll() is None:
            supernode.terminate()
        in_time = True
        try:
            supernode.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            in_time = False
        deadline = time.monotonic() + (PATIENCE if in_time else 0.0)
        while _is_there(supernode.pid) and time.monotonic() < deadline:
            time.sleep(0.1)  # Flower's own clients notice that it is gone
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(supernode.pid, signal.SIGKILL)
        supernode.wait()
        return in_time

    @contextmanager
    def _listening(self) -> Iterator[int]:
        """Hear signals: yield a file descriptor that can be read when one has come."""
        reading, writing = os.pipe()
        for end in (reading, writing):
            os.set_blocking(end, False)
        before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGCHLD)}
        old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in SIGNALS:
            if before[number] != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)

    def _ask(self, number: int, frame: object) -> None:
        self._asked = number


def _how(code: int) -> str:
    """Say how a SuperNode ended that did not say why."""
    if code < 0:
        return (
            f"it was killed by {signal.Signals(-code).name}; the SuperLink takes it for present for up to "
            "60 s, and refuses a restart before that"
        )
    if code == 0:
        return "it left by itself, as it does where the SuperLink no longer knows the device's key"
    return f"exit code {code}; what it said stands above"


_LATE = (
    f"the SuperNode did not leave within {PATIENCE:.0f} s and was killed: the SuperLink takes it for "
    "present, and refuses a restart, for up to 60 s"
)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _drain(reading: int) -> None:
    with suppress(BlockingIOError):
        while os.read(reading, 4096):
            pass


def _say(line: str) -> None:
    print(f"kdfed node: {line}", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """Run the device of a folder; return the exit code."""
    try:
        return Node(read_device_folder(Path(words[0]))).run()
    except KdfedError as error:
        _say(f"error: {one_line(error, 1000)}" if isinstance(error, RunError) else f"error: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
