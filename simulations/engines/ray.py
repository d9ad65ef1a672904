"""The ``ray`` engine: a Flower Grid on Ray actors, for hundreds to thousands of participants.

::

    ParticipantGrid    one message a node, each with whole cohorts
        RayGrid        large arrays into the object store, once; messages to whichever actor is free
            Worker     the ClientApp, unmodified

The grid has more nodes than actors (:data:`NODES_PER_WORKER` each), which own nobody: a round arrives as
several messages, and the next one goes to whoever finishes first. Who trains what changes no result: a reply
holds one result a cohort, and cohorts are cut from the sample alone. So a message whose actor died, or that
takes much longer than the others, is simply run again elsewhere.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.client_app import app as client_app
from kdfed.config import Experiment
from kdfed.errors import Mistake, RunError
from kdfed.events import OnEvent
from kdfed.private.flwr import error_reply, identify, name_message
from kdfed.private.ray import (
    GPU_WARNING,
    INLINE_LIMIT,
    TEMPORARY_OPTION,
    WORKER_NICENESS,
    around_last_stop,
    find_cluster,
)
from kdfed.reasons import reason_of
from kdfed.records import RunFolder
from simulations.engines.checks import missing_packages, no_place, refuse, refuse_devices
from simulations.engines.gpus import gpu_share
from simulations.engines.home import MARK, temporary_home
from simulations.engines.local_grid import LocalGrid, call
from simulations.engines.loopback import bypass_proxies
from simulations.engines.process_state import preserved
from simulations.server_app import run_experiment
from simulations.signals import held, withheld

NODES_PER_WORKER = 4
"""More nodes deal finer; fewer cost less. A lone worker has one: nobody else could take its work."""

IN_FLIGHT = 2
"""Messages that an actor holds at most: one at work, one waiting beside it. The rest waits here, so that
neither messages nor replies pile up in the object store."""

INLINE_BYTES = 2**20
"""Array records up to this size travel in messages and replies: a trip to the object store and back takes as
long as a small model's arithmetic for dozens of participants."""

STRAGGLES_AFTER = 5.0
"""Seconds. A message is run a second time on an idle actor when it has taken longer than this, and longer
than three times the median of the messages that have finished."""

MOST_DEATHS = 3
"""A message at which this many actors died is answered with an error."""

WAIT_SECONDS = 0.5
"""How long a look for replies waits for the first. Looking often would take time from the workers."""

CONNECT_SECONDS = 10.0
START_SECONDS = 120.0


def check(experiment: Experiment, *, nodes: int, address: str | None = None) -> None:
    """Refuse what cannot run here, before anything is started or written.

    Parameters
    ----------
    experiment, nodes, address
        As in :func:`run`.

    Raises
    ------
    ConfigError
        If Ray is missing, no cluster answers at the address, or there is no place for temporary files.
    """
    refuse_devices(experiment)
    refuse(missing_packages("ray", "ray", "psutil"))
    refuse(no_place() if address is None else _no_cluster(address))


@preserved()
def run(
    experiment: Experiment,
    folder: RunFolder,
    *,
    nodes: int,
    on_event: OnEvent,
    address: str | None = None,
    pin: bool = False,
) -> None:
    """Run an experiment on Ray actors.

    Parameters
    ----------
    experiment
        The experiment that ``folder`` was opened for.
    folder
        Receives the records.
    nodes
        Actors. They get equal shares of the GPUs; with ``device: cuda:N`` all of them use that one.
    on_event
        Called with every event of the run.
    address
        An existing Ray cluster, ``host:port`` or ``auto``, every node of which has kdfed installed. Default:
        Ray is started for this run, and stopped with it.
    pin
        Keep each actor on cores of its own, where there are enough; without ``address`` only.

    Raises
    ------
    ConfigError
        If it cannot run here; see :func:`check`.
    RunError
        If Ray did not start, the cluster has no room, or the run failed.
    """
    check(experiment, nodes=nodes, address=address)
    with started(nodes, address):
        gpus = gpu_share(experiment.device, _resources()["GPU"], nodes)
        pinned = pin and address is None
        grid = RayGrid(client_app, nodes, threads=experiment.threads, gpus=gpus, pin=pinned)
        try:
            run_experiment(grid, experiment, folder, "ray", on_event)
        finally:
            with held():
                grid.close()


# ----------------------------------------------------------------------------- Ray itself


@contextmanager
def started(workers: int, address: str | None = None) -> Iterator[None]:
    """Start Ray for this many workers, or join a cluster; on leaving, stop what was started."""
    import ray

    if ray.is_initialized():
        raise RunError("Ray is already running in this process: call ray.shutdown() first")
    before = signal.getsignal(signal.SIGTERM)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    with ExitStack() as stack:
        stack.enter_context(preserved())
        os.environ |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            WORKER_NICENESS: "0",
            INLINE_LIMIT: str(INLINE_BYTES),
        }
        os.environ.setdefault(GPU_WARNING, "0")
        bypass_proxies(os.environ)
        if address is None:
            home = str(stack.enter_context(temporary_home()))
            os.environ[MARK] = home
            # As many CPUs as workers, so that there can be more workers than cores.
            settings |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
            settings[TEMPORARY_OPTION] = home
        else:
            settings["address"] = address
        stack.callback(_shut_down)
        with withheld():
            try:
                ray.init(**settings)
            except Exception as error:
                where = "Ray did not start" if address is None else f"no Ray cluster answers at {address!r}"
                raise RunError(f"{where}: {error}") from error
            finally:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, before)  # Ray sets its own
        yield


def _shut_down() -> None:
    """Shut Ray down with signals ignored; its driver lays SIGTERM back to "end the process" behind Python."""
    import ray

    with held():
        around_last_stop(held())
        ray.shutdown()


def _no_cluster(address: str) -> Iterator[Mistake]:
    """Say at once what Ray would try to reach for half a minute: no address, or nothing listens there."""
    if address == "auto":
        try:
            address = find_cluster()
        except (ConnectionError, ValueError) as error:
            yield Mistake("--address", f"no Ray cluster is found: {error}")
            return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        yield Mistake("--address", f"expected a Ray cluster as host:port, or auto, got {address[:100]!r}")
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        advice = "start one with `ray start --head`, or leave --address away"
        yield Mistake("--address", f"no Ray cluster answers at {address[:100]!r}: {error}; {advice}")


def _resources() -> dict[str, float]:
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {name: there.get(name, 0.0) for name in ("CPU", "GPU")}


def _cores(workers: int, threads: int) -> list[list[int]]:
    """Return cores for each worker, or none for all of them where there are too few."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(there) < workers * threads:
        return [[] for _ in range(workers)]
    return [there[index * threads : (index + 1) * threads] for index in range(workers)]


# ----------------------------------------------------------------------------- a worker


class Worker:
    """An actor: it holds nothing but caches, so any of them can do any message."""

    def __init__(self, app: ClientApp, threads: int, cores: list[int]) -> None:
        if cores:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
        self._app = app
        self._arrays: dict[bytes, ArrayRecord] = {}
        gc.collect()
        gc.freeze()  # what is there stays: no later collection need look at it, which takes 0.2 s

    def ready(self) -> int:
        """Return the process id, once everything is imported."""
        return os.getpid()

    def handle(
        self, message: Message, context: Context, arrays: dict[str, Any]
    ) -> tuple[Message, RecordDict]:
        """Return the ClientApp's reply, and the context's state after it.

        Parameters
        ----------
        message
            Those of its array records that are in ``arrays`` are empty.
        context
            Of the node that the message is for.
        arrays
            Key in the content -> reference of the array record.
        """
        for key, reference in arrays.items():
            message.content[key] = self._fetch(reference)
        identify(message.metadata.run_id, message.metadata.dst_node_id)
        return call(self._app, message, context), context.state

    def _fetch(self, reference: Any) -> ArrayRecord:
        """Return an array record; those of a round are read from the object store once."""
        import ray

        key = reference.binary()
        if key not in self._arrays:
            while len(self._arrays) >= 4:
                self._arrays.pop(next(iter(self._arrays)))
            self._arrays[key] = ray.get(reference)
        return copy(self._arrays[key])


# ----------------------------------------------------------------------------- the grid


@dataclass(eq=False)
class Job:
    """A message on its way: the stored array records it uses, and how many actors died at it."""

    message: Message
    records: list[int]
    deaths: int = 0
    done: bool = False


@dataclass(eq=False)
class Actor:
    """A worker, and the jobs it holds, oldest first: object reference -> (job, since when)."""

    handle: Any
    cores: list[int]
    jobs: dict[Any, tuple[Job, float]] = field(default_factory=dict)


class RayGrid(LocalGrid):
    """A Flower Grid whose nodes are served by Ray actors; Ray must be running, see :func:`started`.

    Parameters
    ----------
    app
        The ClientApp of every node.
    workers
        Actors, 1 or larger.
    threads
        Intra-op threads of each actor.
    gpus
        GPUs of each actor, in [0, 1].
    pin
        Keep each actor on cores of its own, where there are enough. Only on the driver's own machine.

    Raises
    ------
    RunError
        If the cluster has no room for the actors.

    Notes
    -----
    An array record must not be changed before the messages that hold it are answered.
    """

    waits = True  # pull_messages waits for the first reply: whoever asks need not sleep

    def __init__(
        self, app: ClientApp, workers: int, *, threads: int = 1, gpus: float = 0.0, pin: bool = False
    ) -> None:
        import ray

        self._ray = ray
        super().__init__(workers * NODES_PER_WORKER if workers > 1 else 1)
        self._app, self._threads = ray.put(app), threads
        environment = {
            "OMP_NUM_THREADS": str(threads),
            GPU_WARNING: "0",  # on a cluster, too: whoever has no share keeps the GPUs that a device names
            # Freed memory is kept for the next cohort, which needs as much: new pages cost time.
            "MALLOC_TRIM_THRESHOLD_": str(2**28),
            "MALLOC_MMAP_THRESHOLD_": str(2**28),
            # Large pages, where Linux leaves the choice to programs: activations are megabytes that are
            # written once and read once.
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        }
        self._kind = ray.remote(Worker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": environment}
        )
        self._waiting: deque[Job] = deque()
        self._open: dict[str, Job] = {}
        self._replies: dict[str, Message] = {}
        self._stored: dict[int, tuple[ArrayRecord, Any]] = {}
        self._seconds: deque[float] = deque(maxlen=100)
        cores = _cores(workers, threads) if pin else [[] for _ in range(workers)]
        self._actors = [self._start(own) for own in cores]
        try:
            ray.get([actor.handle.ready.remote() for actor in self._actors], timeout=START_SECONDS)
        except ray.exceptions.RayError as error:
            self.close()
            raise RunError(
                f"expected room for {workers} workers (one CPU and {gpus:g} GPUs each) on a cluster with "
                f"{_resources()}: {type(error).__name__}: {error}; use fewer --nodes"
            ) from error

    def _start(self, cores: list[int]) -> Actor:
        return Actor(self._kind.remote(self._app, self._threads, cores), cores)

    def close(self) -> None:
        """Stop the actors."""
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor.handle)

    # ------------------------------------------------------------------ Flower's Grid

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages, and hand to the actors what they have room for."""
        ids = []
        for message in messages:
            name_message(message, str(uuid4()))
            records = message.content.array_records.values()
            large = [record for record in records if record.count_bytes() > INLINE_BYTES]
            job = Job(message, [self._store(record) for record in large])
            self._open[message.metadata.message_id] = job
            self._waiting.append(job)
            ids.append(message.metadata.message_id)
        self._deal()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have arrived; wait a while for the first."""
        self._collect()
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    # ------------------------------------------------------------------ dealing

    def _store(self, record: ArrayRecord) -> int:
        """Put an array record into the object store, unless it is there; return its key."""
        if id(record) not in self._stored:
            self._stored[id(record)] = (record, self._ray.put(record))
        return id(record)

    def _deal(self) -> None:
        """Hand out waiting messages, then run a straggler again on an actor that is idle."""
        while self._waiting:
            # The last ones go to idle actors only: behind another message they might wait for long.
            room = IN_FLIGHT if len(self._waiting) > len(self._actors) else 1
            actor = min(self._actors, key=lambda one: len(one.jobs))
            if len(actor.jobs) >= room:
                return
            self._hand(self._waiting.popleft(), actor)
        idle = [actor for actor in self._actors if not actor.jobs]
        if idle and (straggler := self._straggler()) is not None:
            self._hand(straggler, idle[0])

    def _hand(self, job: Job, actor: Actor) -> None:
        content = job.message.content
        arrays = {
            key: self._stored[id(record)][1]
            for key, record in content.array_records.items()
            if id(record) in self._stored
        }
        message, empty = copy(job.message), ArrayRecord()
        message.content = RecordDict(
            {key: empty if key in arrays else record for key, record in content.items()}
        )
        context = self._contexts[job.message.metadata.dst_node_id]
        reference = actor.handle.handle.remote(message, context, arrays)
        actor.jobs[reference] = (job, time.monotonic())

    def _straggler(self) -> Job | None:
        """Return the open job that has taken longest, if that is far too long and it runs only once."""
        if not self._seconds:
            return None
        limit = max(STRAGGLES_AFTER, 3 * statistics.median(self._seconds))
        running = [entry for actor in self._actors for entry in actor.jobs.values() if not entry[0].done]
        once = [(since, job) for job, since in running if sum(job is other for other, _ in running) == 1]
        since, straggler = min(once, key=lambda entry: entry[0], default=(math.inf, None))
        return straggler if time.monotonic() - since > limit else None

    # ------------------------------------------------------------------ collecting

    def _collect(self) -> None:
        owners = {reference: actor for actor in self._actors for reference in actor.jobs}
        if owners:
            ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=WAIT_SECONDS)
            if ready:
                ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
            for reference in ready:
                if reference in owners[reference].jobs:  # else its actor was just found dead
                    self._take(owners[reference], reference)
        self._deal()

    def _take(self, actor: Actor, reference: Any) -> None:
        job, since = actor.jobs[reference]
        try:
            reply, state = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            del actor.jobs[reference]
            cause = error.cause
            self._fail(job, f"the worker could not answer: {reason_of(cause) if cause else error}")
            return
        except self._ray.exceptions.RayError as error:
            self._bury(actor, error)
            return
        del actor.jobs[reference]
        now = time.monotonic()
        actor.jobs = {other: (one, now) for other, (one, _) in actor.jobs.items()}  # what waited begins now
        if not job.done:  # else it was a straggler's twin
            self._seconds.append(now - since)
            self._contexts[job.message.metadata.dst_node_id].state = state
            self._finish(job, reply)

    def _bury(self, actor: Actor, error: Exception) -> None:
        """Replace a dead actor; its messages are run again, before all others."""
        jobs = [job for job, _ in actor.jobs.values() if not job.done]
        actor.jobs = {}
        self._actors[self._actors.index(actor)] = self._start(actor.cores)
        elsewhere = [job for one in self._actors for job, _ in one.jobs.values()]
        if jobs:
            jobs[0].deaths += 1  # the other only waited behind it
        for job in reversed(jobs):
            if job.deaths >= MOST_DEATHS:
                self._fail(job, f"{job.deaths} workers died at this message, the last with: {error}")
            elif job not in elsewhere:
                self._waiting.appendleft(job)

    def _fail(self, job: Job, reason: str) -> None:
        if not job.done:
            self._finish(job, error_reply(job.message, reason))

    def _finish(self, job: Job, reply: Message) -> None:
        job.done = True
        name_message(reply, str(uuid4()))
        message_id = job.message.metadata.message_id
        self._replies[message_id] = reply
        del self._open[message_id]
        used = {key for other in self._open.values() for key in other.records}
        for key in set(self._stored) - used:
            del self._stored[key]
