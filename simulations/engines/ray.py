"""The ``ray`` engine: cohorts on Ray actors, for hundreds to thousands of participants.

Every worker is a Ray actor with its own process. The grid shows four nodes a worker, which own nobody: the
messages for them are chunks, and each goes to whichever worker is free. So the result does not depend on the
number of workers, and neither on their failures:

- a worker that dies is replaced, and its messages are run again elsewhere; a message under which three
  workers died is answered with an error;
- a straggler is run again on an idle worker, and the first reply wins. It is a message that has run for more
  than 5 seconds and more than 3 times the median of those of its exchange that are finished;
- an exception of the ClientApp is an error reply, and is not run again.

A worker has at most two messages at hand, so that the next is there when one is done; the others wait here.
An ArrayRecord that several messages share is put into Ray's object store once.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from kdfed.config import Experiment
from kdfed.errors import RunError
from kdfed.events import OnEvent
from simulations.engines.flower import _is_alive, _no_interrupts

try:
    import ray
except ImportError:  # only kdfed[sim] installs it; `run` says so
    ray = None

if TYPE_CHECKING:
    import psutil

    from kdfed.records import RunFolder

NODES_PER_WORKER = 4
"""Messages of an exchange for each worker: more even out the load, fewer cost less."""

AT_HAND = 2
"""Messages that a worker has at most: the one it runs, and the next."""

STRAGGLER_SECONDS = 5.0
STRAGGLER_RATIO = 3.0
"""A straggler has run longer than this, and than this times the median of its exchange."""

MOST_DEATHS = 3
"""Workers that may die under one message, or one after the other before they are up."""

START_SECONDS = 60.0
"""How long a cluster may take to find room for workers, and those to import torch."""

ANSWER_SECONDS = 8.0
"""How long a cluster may take to answer."""

_SERVER_NODE = 1
_FIRST_NODE = 1001

log = logging.getLogger("flwr")


def run(
    experiment: Experiment, folder: RunFolder, *, nodes: int, on_event: OnEvent, address: str | None = None
) -> None:
    """Run an experiment on Ray actors.

    Parameters
    ----------
    experiment
        The experiment that ``folder`` was opened for.
    folder
        Receives the records.
    nodes
        Workers, each with ``threads`` cores; the result does not depend on their number.
    on_event
        Called with every event of the run.
    address
        Ray cluster to join, as ``host:port`` or ``auto``; kdfed must be installed on its machines, and this
        must be one of them. Default: a cluster of this machine's own, which ends with the run; where Ray
        runs in this process already, that one.

    Raises
    ------
    RunError
        If Ray is not installed, the cluster does not answer or has no room, or the run failed.
    """
    missing = [name for name in ("ray", "psutil") if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"the ray engine needs {' and '.join(missing)}: install kdfed[sim], or use --engine inprocess"
        )
    # Here, because a worker imports this module and needs neither the server's side nor a second ClientApp.
    from clients.client_app import app
    from simulations.server_app import run_experiment

    with _cluster(address, nodes * experiment.threads, experiment.device):
        share = _gpu_share(experiment.device, nodes)
        with RayGrid(app, nodes, threads=experiment.threads, gpus=share) as grid:
            run_experiment(grid, experiment, folder, "ray", on_event)


# ----------------------------------------------------------------------------- what a worker does

_Record = ArrayRecord | ConfigRecord | MetricRecord


class _Worker:
    """Runs the ClientApp in a process of its own; ``ray.remote`` makes it an actor."""

    def __init__(self, app: ClientApp, threads: int, nodes: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._app = app
        self._nodes = nodes
        TaskIdentity.run_id, TaskIdentity.task_id = 1, 1

    def start(self, home: str, cores: Sequence[int]) -> None:
        """Keep to these cores, where the worker is on Ray's node ``home``; its return says that it is up."""
        if cores and ray.get_runtime_context().get_node_id() == home:
            os.sched_setaffinity(0, cores)

    def handle(
        self,
        metadata: Metadata,
        records: Sequence[tuple[str, _Record | None]],
        state: RecordDict | None,
        *arrays: ArrayRecord,
    ) -> tuple[Message, RecordDict | None]:
        """Answer one message.

        Parameters
        ----------
        metadata
            The message's.
        records
            Its content; None stands for the next of ``arrays``.
        state
            The node's state; None when it is empty.
        arrays
            From the object store.

        Returns
        -------
        tuple
            The reply; the node's new state, or None when it is empty still.
        """
        node, rest = metadata.dst_node_id, iter(arrays)
        TaskIdentity.node_id = node
        content = RecordDict({key: next(rest) if record is None else record for key, record in records})
        message = Message(content=content, metadata=metadata)  # type: ignore[call-overload]
        config: dict[str, Any] = {"partition-id": node - _FIRST_NODE, "num-partitions": self._nodes}
        context = Context(1, node, config, RecordDict() if state is None else state, {})
        try:
            reply = self._app(message, context)
            reply.metadata.__dict__["_message_id"] = str(uuid4())
        except Exception as error:
            reply = _error_reply(
                message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"
            )
        return reply, context.state if state is not None or context.state else None


def _error_reply(message: Message, code: int, reason: str) -> Message:
    reply = Message(Error(code, reason), reply_to=message)
    reply.metadata.__dict__["_message_id"] = str(uuid4())
    return reply


# ----------------------------------------------------------------------------- the grid


@dataclass(eq=False)
class _Shared:
    """An ArrayRecord in the object store; ``arrays`` tell when its owner changed it since."""

    record: ArrayRecord
    arrays: list[Any]
    ref: Any
    users: int = 0


@dataclass(eq=False)
class _Exchange:
    """Messages of one type and group: how many have no reply, and the seconds that the others took."""

    waiting: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(eq=False)
class _Job:
    """A message without a reply."""

    number: int
    message: Message
    shared: list[_Shared]
    exchange: _Exchange
    attempts: int = 0
    deaths: int = 0
    done: bool = False

    @property
    def node(self) -> int:
        return self.message.metadata.dst_node_id

    @property
    def expired(self) -> bool:
        metadata = self.message.metadata
        return time.time() > metadata.created_at + metadata.ttl


@dataclass(eq=False)
class _Attempt:
    job: _Job
    ref: Any
    started: float


@dataclass(eq=False)
class _Slot:
    """A worker's place: who is there, and what it has at hand, in the order in which it runs that."""

    cores: Sequence[int]
    actor: Any = None
    starting: Any = None
    failures: int = 0
    attempts: deque[_Attempt] = field(default_factory=deque)

    @property
    def up(self) -> bool:
        return self.actor is not None and self.starting is None


class RayGrid(Grid):
    """A Flower Grid on Ray actors; Ray must run. Use it as a context manager, or call :meth:`close`.

    Parameters
    ----------
    app
        The ClientApp of every node.
    workers
        Actors, 1 or larger, each with the same share of the cluster.
    threads
        Cores of a worker, and its intra-op threads.
    gpus
        GPUs of a worker, in [0, 1]. Default: none.

    Raises
    ------
    RunError
        If no worker is up in a minute, or one cannot start. Where there is room for some only, they do all.

    Notes
    -----
    An ArrayRecord must not be changed before the messages that hold it are answered.
    """

    def __init__(self, app: ClientApp, workers: int, *, threads: int = 1, gpus: float = 0.0) -> None:
        nodes = workers * NODES_PER_WORKER
        self._run = Run.create_empty(run_id=1)
        self._states: dict[int, RecordDict | None] = dict.fromkeys(range(_FIRST_NODE, _FIRST_NODE + nodes))
        self._queues: dict[int, deque[_Job]] = {node: deque() for node in self._states}
        self._running: dict[int, _Job] = {}
        self._jobs: dict[str, _Job] = {}
        self._replies: dict[str, Message] = {}
        self._shared: dict[int, _Shared] = {}
        self._exchanges: dict[tuple[str, str], _Exchange] = {}
        self._pushed = self._answered = 0
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SERVER_NODE, 1

        self._home = ray.get_runtime_context().get_node_id()
        self._arguments = (ray.put(app), threads, nodes)
        self._needs = {"CPU": float(threads), "GPU": gpus}
        self._class = ray.remote(_Worker).options(
            num_cpus=threads,
            num_gpus=gpus,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": _environment(threads)},
        )
        cores = _cores(workers * threads)
        self._slots = [_Slot(cores[i * threads : (i + 1) * threads]) for i in range(workers)]
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; messages without a reply stay without one."""
        for slot in self._slots:
            if slot.actor is not None:
                with suppress(Exception):  # Ray may be gone already
                    ray.kill(slot.actor)
            slot.actor = slot.starting = None
            slot.attempts.clear()

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message for a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' ids."""
        return list(self._states)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages, and hand to the workers what they have room for."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            records = message.content.values()
            shared = [self._share(record) for record in records if isinstance(record, ArrayRecord)]
            exchange = self._exchanges.setdefault(_exchange_of(message), _Exchange())
            exchange.waiting += 1
            job = _Job(self._pushed, message, shared, exchange)
            self._pushed += 1
            self._jobs[message.metadata.message_id] = job
            self._queues[job.node].append(job)
            ids.append(message.metadata.message_id)
        self._dispatch()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived for these message ids."""
        self._collect()
        wanted = [message_id for message_id in message_ids if message_id in self._replies]
        return [self._replies.pop(message_id) for message_id in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages, and pull until every reply is here or ``timeout`` seconds have passed."""
        waiting = dict.fromkeys(self.push_messages(messages))
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        replies = []
        while True:
            for reply in self.pull_messages(waiting):
                del waiting[reply.metadata.reply_to_message_id]
                replies.append(reply)
            left = end - time.monotonic()
            if not waiting or left <= 0:
                break
            self.wait(min(left, 0.5))
        for message_id in waiting:
            self._forget(message_id)
        return replies

    def wait(self, seconds: float) -> None:
        """Wait for the next reply, at most ``seconds``, and keep the workers busy meanwhile."""
        before, end = self._answered, time.monotonic() + seconds
        while self._answered == before and (left := end - time.monotonic()) > 0:
            open_refs = self._open_refs()
            if not open_refs:
                time.sleep(left)
                return
            ray.wait(open_refs, timeout=min(left, 0.5), fetch_local=False)
            self._collect()

    # ------------------------------------------------------------------ messages

    def _share(self, record: ArrayRecord) -> _Shared:
        arrays = list(record.values())
        shared = self._shared.get(id(record))
        if shared is None or len(arrays) != len(shared.arrays) or any(map(_differ, arrays, shared.arrays)):
            shared = self._shared[id(record)] = _Shared(record, arrays, ray.put(record))
        shared.users += 1
        return shared

    def _close_job(self, job: _Job) -> None:
        job.done = True
        del self._jobs[job.message.metadata.message_id]
        self._stop(job)
        for shared in job.shared:
            shared.users -= 1
            if not shared.users and self._shared.get(id(shared.record)) is shared:
                del self._shared[id(shared.record)]
        job.exchange.waiting -= 1
        if not job.exchange.waiting:
            del self._exchanges[_exchange_of(job.message)]

    def _stop(self, job: _Job) -> None:
        if self._running.get(job.node) is job:
            del self._running[job.node]

    def _answer(self, job: _Job, reply: Message) -> None:
        self._close_job(job)
        self._replies[job.message.metadata.message_id] = reply
        self._answered += 1

    def _forget(self, message_id: str) -> None:
        """Drop a message that nobody waits for any more, and its reply."""
        self._replies.pop(message_id, None)
        job = self._jobs.get(message_id)
        if job is not None:
            with suppress(ValueError):
                self._queues[job.node].remove(job)
            self._close_job(job)

    # ------------------------------------------------------------------ dealing

    def _dispatch(self) -> None:
        """Deal waiting messages, oldest first; then run stragglers again where a worker is idle."""
        now = time.monotonic()
        up = [slot for slot in self._slots if slot.up]
        if not any(slot.actor for slot in self._slots):
            for job in list(self._jobs.values()):
                self._answer(job, _error_reply(job.message, ErrorCode.NODE_UNAVAILABLE, "no worker is left"))
            for queue in self._queues.values():
                queue.clear()
            return
        while ready := self._ready():
            # The last messages go to idle workers only: behind another one, they might wait for long.
            room = AT_HAND if len(ready) > len(up) else 1
            free = [s for s in up if len(s.attempts) < room and not (s.attempts and self._stuck(s, now))]
            slot = min(free, key=lambda slot: len(slot.attempts), default=None)
            if slot is None:
                return
            job = ready[0]
            self._queues[job.node].popleft()
            self._running[job.node] = job
            self._send(job, slot, now)
        for slot in up:
            if not slot.attempts and (job := self._straggler(now)) is not None:
                self._send(job, slot, now)

    def _ready(self) -> list[_Job]:
        """Return each node's next message, oldest first: a node's state goes from one message to the next."""
        heads = [
            queue[0]
            for node, queue in self._queues.items()
            if queue and (node not in self._running or self._running[node].expired)
        ]
        return sorted(heads, key=lambda job: job.number)

    def _send(self, job: _Job, slot: _Slot, now: float) -> None:
        refs = [shared.ref for shared in job.shared]
        records = [
            (key, None if isinstance(record, ArrayRecord) else record)
            for key, record in job.message.content.items()
        ]
        state = self._states[job.node]
        ref = slot.actor.handle.remote(job.message.metadata, records, state, *refs)
        slot.attempts.append(_Attempt(job, ref, started=now))
        job.attempts += 1

    def _stuck(self, slot: _Slot, now: float) -> bool:
        return self._slow(slot.attempts[0], now) or slot.attempts[0].job.expired

    def _slow(self, attempt: _Attempt, now: float) -> bool:
        seconds, finished = now - attempt.started, attempt.job.exchange.seconds
        if seconds <= STRAGGLER_SECONDS or not finished:
            return False
        return seconds > STRAGGLER_RATIO * statistics.median(finished)

    def _straggler(self, now: float) -> _Job | None:
        """Return a message to run again: one that is slow, or waits behind one, and runs nowhere else."""
        for slot in self._slots:
            if slot.attempts and self._stuck(slot, now):
                for attempt in slot.attempts:
                    if attempt.job.attempts == 1 and not attempt.job.done and not attempt.job.expired:
                        return attempt.job
        return None

    # ------------------------------------------------------------------ collecting

    def _open_refs(self) -> list[Any]:
        starting = [slot.starting for slot in self._slots if slot.starting is not None]
        return starting + [attempt.ref for slot in self._slots for attempt in slot.attempts]

    def _collect(self) -> None:
        """Take what is finished, see to dead workers, and deal again."""
        open_refs = self._open_refs()
        if open_refs:
            finished, _ = ray.wait(open_refs, num_returns=len(open_refs), timeout=0)
            done = set(finished)
            for slot in self._slots:
                if slot.starting in done:
                    self._take_start(slot)
                while slot.attempts and slot.attempts[0].ref in done:
                    self._take_reply(slot)
        self._dispatch()

    def _take_reply(self, slot: _Slot) -> None:
        attempt, now = slot.attempts[0], time.monotonic()
        job = attempt.job
        try:
            reply, state = ray.get(attempt.ref)
        except ray.exceptions.RayTaskError as error:  # a reply that cannot be sent, say
            reason = f"{type(error.cause).__name__}: {error.cause}"
            reply = _error_reply(job.message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            state = self._states[job.node]
        except ray.exceptions.RayError as error:
            self._take_death(slot, error)
            return
        slot.attempts.popleft()
        job.attempts -= 1
        if slot.attempts:
            slot.attempts[0].started = now
        if not job.done:
            job.exchange.seconds.append(now - attempt.started)
            self._states[job.node] = state
            self._answer(job, reply)

    def _take_death(self, slot: _Slot, error: Exception) -> None:
        """Replace a worker. Only the message that it was running counts the death."""
        log.warning("a Ray worker died, and its messages are run again: %s", type(error).__name__)
        attempts = list(slot.attempts)
        slot.attempts.clear()
        attempts[0].job.deaths += 1
        for attempt in reversed(attempts):
            job = attempt.job
            job.attempts -= 1
            if job.done or job.attempts:
                continue
            if job.deaths >= MOST_DEATHS:
                reason = f"{job.deaths} workers died under this message, the last of {type(error).__name__}"
                self._answer(job, _error_reply(job.message, ErrorCode.CLIENT_APP_CRASHED, reason))
                continue
            self._stop(job)
            self._queues[job.node].appendleft(job)
        self._start(slot)

    # ------------------------------------------------------------------ workers

    def _start(self, slot: _Slot) -> None:
        if slot.actor is not None:
            ray.kill(slot.actor)  # it may live on where only the way to it was lost
        slot.actor = self._class.remote(*self._arguments)
        slot.starting = slot.actor.start.remote(self._home, slot.cores)

    def _take_start(self, slot: _Slot) -> None:
        try:
            ray.get(slot.starting)
        except ray.exceptions.RayError as error:
            slot.failures += 1
            log.warning("a Ray worker did not start: %s", error)
            if slot.failures < MOST_DEATHS:
                self._start(slot)
            else:
                slot.actor = slot.starting = None
        else:
            slot.starting, slot.failures = None, 0

    def _start_all(self) -> None:
        for slot in self._slots:
            self._start(slot)
        starting = [slot.starting for slot in self._slots]
        room = min(len(starting), max(1, _room(self._needs)))
        finished, _ = ray.wait(starting, num_returns=room, timeout=START_SECONDS)
        try:
            ray.get(finished)
        except ray.exceptions.RayError as error:
            raise RunError(f"a Ray worker did not start: {error}") from error
        if not finished:
            raise RunError(
                f"expected room for a worker with {_words(self._needs)} within {START_SECONDS:g} seconds; "
                f"the cluster has {_words(ray.cluster_resources())}, of which "
                f"{_words(ray.available_resources())} are free"
            )
        if len(finished) < len(starting):
            log.warning("the cluster has room for %d of %d workers", len(finished), len(starting))
        self._collect()


def _exchange_of(message: Message) -> tuple[str, str]:
    return message.metadata.message_type, message.metadata.group_id


def _differ(one: object, other: object) -> bool:
    return one is not other


# ----------------------------------------------------------------------------- cores and GPUs


def _environment(threads: int) -> dict[str, str]:
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(pools, str(threads)), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _cores(wanted: int) -> list[int]:
    """Return cores of this process for its workers to keep to, or none where it has fewer than wanted.

    Those that the workers of another run keep to come last.
    """
    import psutil

    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < wanted:
        return []
    taken: Counter[int] = Counter()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("ray::_Worker"):
                taken.update(process.cpu_affinity())
    return sorted(cores, key=taken.__getitem__)[:wanted]


def _gpu_share(device: str, workers: int) -> float:
    """Return each worker's share of the cluster's GPUs; 0 when the experiment wants none."""
    if not device.startswith(("auto", "cuda")):
        return 0.0
    share = min(1.0, ray.cluster_resources().get("GPU", 0.0) / workers)
    return math.floor(share * 10_000) / 10_000  # Ray's step; rounded up, the last would find no room


def _room(needs: dict[str, float]) -> int:
    """Return how many workers with these needs the cluster's nodes hold when they are empty."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {name: amount for name, amount in needs.items() if amount}
    return sum(
        min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()) for node in nodes
    )


def _words(resources: dict[str, float]) -> str:
    return " and ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))


# ----------------------------------------------------------------------------- Ray itself


@contextmanager
def _cluster(address: str | None, cpus: int, device: str) -> Iterator[None]:
    """Start Ray or join it; on leaving, end what was started, and only leave what was joined."""
    if ray.is_initialized():
        if address is not None:
            raise RunError(f"Ray runs in this process already: expected no address, got {address}")
        yield
    elif address is None:
        with _local_cluster(cpus, device):
            yield
    else:
        _expect_answer(address)
        try:
            try:
                _init(address=address)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RunError(f"cannot join the Ray cluster at {address}: {error}") from error
            yield
        finally:
            with _no_interrupts():
                ray.shutdown()


@contextmanager
def _local_cluster(cpus: int, device: str) -> Iterator[None]:
    gpus = 0
    if device.startswith(("auto", "cuda")):
        import torch

        gpus = torch.cuda.device_count()
    # Ray keeps its sockets in here, and a socket's path has at most 107 characters: no long TMPDIR.
    short = Path("/tmp")  # noqa: S108
    home = Path(tempfile.mkdtemp(prefix="kdfed-", dir=short if short.is_dir() else None))
    try:
        # As many CPUs as the workers want, so that there may be more workers than cores.
        _init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, _temp_dir=str(home))
        yield
    finally:
        with _no_interrupts():
            started = _processes(home)
            ray.shutdown()
            _end(started)
            shutil.rmtree(home, ignore_errors=True)


def _init(**settings: Any) -> None:
    """Initialise Ray without its banner, its telemetry and its handler of SIGTERM."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning, once a process
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **settings)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def _expect_answer(address: str) -> None:
    """Ask for the cluster's health in a process of its own: Ray itself tries for 35 seconds and cannot stop."""
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    reason = f"it did not answer within {ANSWER_SECONDS:g} seconds"
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)  # noqa: S603
        if done.returncode == 0:
            return
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    raise RunError(f"expected a Ray cluster at {address}: {reason}; `ray start --head` starts one")


def _processes(home: Path) -> list[psutil.Process]:
    """Return the daemons of a session of Ray, which name its folder, and the workers beneath them."""
    import psutil

    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if str(home) in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found


def _end(processes: list[psutil.Process]) -> None:
    """Wait until these processes have ended, and kill those that do not within 3 seconds."""
    import psutil

    deadline = time.monotonic() + 3
    while processes := [process for process in processes if _is_alive(process)]:
        if time.monotonic() > deadline:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(0.02)
