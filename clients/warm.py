"""A warm client: a process in which everything is imported, which forks one that answers a message.

Flower starts a fresh Python for each message; importing torch and kdfed there takes seconds, the training
often less than one. A fork takes some milliseconds, shares the memory of what was imported, and still gives
every message a process of its own: whatever it leaves behind, or breaks, ends with it.

Three things make a fork safe, and :func:`unsafe` looks at those that can be seen: no other thread runs (it
would be gone in the child, with the locks it held), so nothing is computed here, by which torch and OpenMP
would start their threads; CUDA is not initialised (a child could not use it), while a child that forks before
that initialises it for itself; and the child reads no random state that its brothers have as well.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from kdfed.private.flwr import NodeTask

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
"""What asks a device to leave; Windows has no SIGHUP."""

PRELOADED = ("clients.client_app", "flwr.clientapp.mod")
"""What every message needs."""

READERS = {"folder": ("PIL.Image",)}
"""What reads a device's data, by how ``data`` begins; where it is not installed, the client says so.

Not pyarrow, which starts a thread when it is imported: a client that reads Parquet files imports it for
itself."""

TASKS = Path("/proc/self/task")
"""Linux lists a process's threads here, those of libraries too."""


def preload(data: str) -> None:
    """Import what a client needs, and keep the garbage collector from touching it, so that it stays shared.

    Parameters
    ----------
    data
        A device's ``data``.
    """
    for name in (*PRELOADED, *READERS.get(data.partition(":")[0], ())):
        if find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def unsafe(threads: int) -> str:
    """Return why this process must not be forked; "" where it may.

    Parameters
    ----------
    threads
        As many may be there: OpenBLAS starts its own when it is imported, and stops them before a fork.
    """
    if threading.active_count() > 1:
        names = ", ".join(sorted(one.name for one in threading.enumerate()))
        return f"expected one thread, got {names}"
    if TASKS.is_dir() and len(list(TASKS.iterdir())) > threads:
        return f"expected at most {threads} threads, got {len(list(TASKS.iterdir()))}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "expected CUDA to be left to the child, got one that is initialised"
    return ""


class Children:
    """The processes that were forked, and have not ended."""

    def __init__(self) -> None:
        self._running: dict[int, NodeTask] = {}

    def fork(self, work: Callable[[], None], task: NodeTask) -> int:
        """Do some work in a child, which ends with it; return its process id.

        Parameters
        ----------
        work
            Its ``SystemExit`` is the child's exit code; another exception is 1.
        task
            What it is about.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none is for the parent's handler in the child
        pid = os.fork()
        if pid == 0:
            _be_a_child(work)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._running[pid] = task
        return pid

    def ended(self) -> Iterator[tuple[NodeTask, int]]:
        """Yield what each child that has ended since was about, and its exit code, or minus its signal."""
        for pid, task in list(self._running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._running[pid]
                yield task, os.waitstatus_to_exitcode(status)

    def end(self, patience: float) -> None:
        """Ask all of them to end, and kill those that have not after so many seconds."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        while self._running:
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            list(self.ended())
            time.sleep(0.02)

    def _signal(self, number: int) -> None:
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _be_a_child(work: Callable[[], None]) -> None:
    """Do the work, and end; never return into what the parent was doing."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (*SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _become_the_first_to_go()
        _draw_anew()
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become_the_first_to_go() -> None:
    """Let a kernel that runs out of memory end this process, not the SuperNode or the parent."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _draw_anew() -> None:
    """Give the global generators states of their own: brothers must not draw the same numbers."""
    random.seed()
    seed = int.from_bytes(os.urandom(4), "little")
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(seed)
