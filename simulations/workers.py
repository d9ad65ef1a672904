"""Many jobs in parallel processes, which end with the process that started them.

Studies, tuning and matrices run on this.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdfed.errors import RunError, RunFolderError
from simulations.signals import withheld


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])


def progress_on(console: Console) -> Progress:
    """Return a display of bars with how many of how many, and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def check_folder(folder: Path) -> None:
    """Make a folder, and try whether it can be written to.

    Raises
    ------
    RunFolderError
        If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunFolderError(
            f"{folder.parent}: expected a folder that can be written to: {error.strerror or error}; choose "
            "another (--out)"
        ) from error


@contextmanager
def worker_pool(workers: int, begin: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Start processes that end at once when the block is left by an exception, or this process is gone.

    Parameters
    ----------
    workers
        How many.
    begin
        Called in each with the arguments, before its first job.
    """
    context = multiprocessing.get_context("spawn")
    end, leash = context.Pipe(duplex=False)
    initial = (end, begin, arguments)
    with leash, end, ProcessPoolExecutor(workers, context, initializer=_begin, initargs=initial) as pool:
        try:
            yield pool
        except BaseException:
            leash.close()  # the workers end at once: the pool would wait for what they are doing
            raise


def _begin(end: Connection, begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with, args=(end,), daemon=True).start()
    begin(*arguments)


def _end_with(leash: Connection) -> None:
    """End this process when the other end of a pipe is closed: by who started it, or because that is gone."""
    with suppress(OSError, EOFError):
        leash.recv_bytes()
    os._exit(1)


def run_all(
    pool: ProcessPoolExecutor,
    job: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    done: Callable[[tuple[Any, ...], Any], None],
    at_once: int | None = None,
) -> None:
    """Run a job for each of many arguments.

    Parameters
    ----------
    pool, job, arguments
        What is run where.
    done
        Called with the arguments and the result of each job that ends.
    at_once
        How many are handed out at a time: the next arguments are asked for when a job has ended. Default:
        all.

    Raises
    ------
    RunError
        If a job raised something, or a process died.
    """
    coming, ended = iter(arguments), SimpleQueue[Future[Any]]()
    running: dict[Future[Any], tuple[Any, ...]] = {}

    def hand_out(count: int | None) -> None:
        for own in islice(coming, count):
            with withheld(but=[signal.SIGTERM]):  # the pool needs it
                future = pool.submit(job, *own)
            running[future] = own
            future.add_done_callback(ended.put)

    own: tuple[Any, ...] = ()
    try:
        hand_out(at_once)
        while running:
            future = ended.get()
            own = running.pop(future)
            done(own, future.result())
            hand_out(1)
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise RunError(
                "a worker process died, usually because the memory was used up; use fewer --workers. What "
                "was finished is kept: the same command goes on from there"
            ) from error
        if isinstance(error, Exception):
            raise RunError(f"{own}: {type(error).__name__}: {error}") from error
        raise


class Runner:
    """Kinds of jobs in one pool, a bar each: what is missing is run, what was finished before is counted.

    Parameters
    ----------
    pool, progress
        Where they run, and where the bars are.
    """

    def __init__(self, pool: ProcessPoolExecutor, progress: Progress) -> None:
        self.pool, self.progress = pool, progress

    def run(
        self,
        title: str,
        job: Callable[..., Any],
        missing: Iterable[tuple[Any, ...]],
        *,
        total: int,
        finished: int = 0,
        done: Callable[[tuple[Any, ...], Any], None] = lambda own, result: None,
        at_once: int | None = None,
    ) -> None:
        """Run the jobs of one kind; see :func:`run_all`.

        Parameters
        ----------
        title
            Before the bar.
        job, missing, done, at_once
            As there; ``missing`` are the arguments of jobs that no earlier command finished.
        total, finished
            How many jobs there are, and how many of them were finished before.
        """
        bar = self.progress.add_task(title, total=total, completed=finished)

        def advance(own: tuple[Any, ...], result: Any) -> None:
            done(own, result)
            self.progress.advance(bar)

        run_all(self.pool, job, missing, advance, at_once)


@contextmanager
def runner(workers: int, console: Console, begin: Callable[..., None], *arguments: Any) -> Iterator[Runner]:
    """Start a pool with its bars; see :func:`worker_pool`."""
    with progress_on(console) as progress, worker_pool(workers, begin, *arguments) as pool:
        yield Runner(pool, progress)
