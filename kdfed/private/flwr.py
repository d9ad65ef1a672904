"""What kdfed uses of Flower beyond its documented interface. See :mod:`kdfed.private` for the rule.

Every entry was seen in flwr 1.41.0 and 1.42.0, alike in both. ``make test-flower`` tries the releases that
``pyproject.toml`` allows.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache
from importlib.metadata import version
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.strategy.strategy_utils import (
    aggregate_metricrecords,
    log_strategy_start_info,
    sample_nodes,
)
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIPPING_NORM",
    "COMPLETED",
    "HEALTH",
    "SAMPLING_SLEEP",
    "SIMULATION_ACTORS",
    "WARM_RELEASES",
    "Control",
    "Identity",
    "NodeInfo",
    "NodeTask",
    "NodeTasks",
    "Run",
    "RunState",
    "SuperNode",
    "aggregate_metrics",
    "answer_task",
    "app_bundle",
    "app_complaints",
    "empty_run",
    "error_reply",
    "flat_view",
    "identify",
    "identity",
    "is_network",
    "log_start",
    "name_message",
    "node_environment",
    "readdressed",
    "restore",
    "sample_nodes",
    "silent_environment",
    "submitted",
    "superlink_environment",
    "warm_release",
]

# ----------------------------------------------------------------------------- a grid of one's own

# Run: what the public ``Grid.set_run`` takes and ``Grid.run`` returns, but no public module exports it.
# When it moves: import it from wherever ``flwr.serverapp.Grid`` has it from.


def empty_run() -> Run:
    """Return the run that a grid without a SuperLink is of: number 1, and nothing known about it.

    ``Grid.run`` must return one. When ``create_empty`` goes: build a ``Run`` with its constructor.
    """
    return Run.create_empty(run_id=1)


def name_message(message: Message, message_id: str) -> None:
    """Give a message its id, as a grid does that takes it.

    Only a SuperLink names messages: one that was just made has the id "", and a reply to it, which copies the
    id as its ``reply_to_message_id``, could not be told from any other. ``Metadata.message_id`` cannot be
    set. When it moves: build the message with the id, or use the setter that replaced this.
    """
    message.metadata.__dict__["_message_id"] = message_id


def readdressed(message: Message, message_type: str, content: RecordDict) -> Message:
    """Return a message with the same metadata, but of another type, with other content.

    ``clients.teacher`` hands an app's own train handler what it would get in a round, and the reply must
    still answer the teacher message. ``Metadata`` and ``Message`` have no public way to say that. When it
    moves: build the message anew, and give the reply the id of the one that was asked.
    """
    metadata = copy(message.metadata)
    metadata.message_type = message_type
    changed = copy(message)
    changed.__dict__.update(_metadata=metadata, _content=content)
    return changed


def error_reply(message: Message, reason: str) -> Message:
    """Return the reply to a message that says why a handler failed.

    ``Error`` is public, but the names of its codes are not. This one, 2 in both releases, is what Flower
    sends for a ClientApp that raised; its own text is whatever its processes make of it. When it moves: use
    the number.
    """
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


# ----------------------------------------------------------------------------- who this process is


class Identity(NamedTuple):
    """Of which run, node and task a process is part; None where that was never said."""

    run_id: int | None
    node_id: int | None
    task_id: int | None


def identify(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Say of which run, node and task this process is part.

    ``Message(...)`` takes its sender and its run from here, and raises ``RuntimeError`` where nobody said it.
    Flower's own processes do; a grid without them must. When it moves: look for what ``flwr.app.Message``
    reads when it makes its metadata.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id


def identity() -> Identity:
    """Return what :func:`identify` said last, for :func:`restore`.

    The properties ``run_id`` and its like raise where nothing was said, so the fields behind them are read.
    When they move: catch that error instead.
    """
    return Identity(TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)


def restore(before: Identity) -> None:
    """Put back what :func:`identity` returned, also that nothing was said."""
    for name, value in before._asdict().items():
        setattr(TaskIdentity, f"_{name}", value)


# ----------------------------------------------------------------------------- arrays


def flat_view(array: Array, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Return a flat view of an array of this shape and dtype; None where it is packed in another way.

    ``Array.numpy()`` parses the same header of some 100 characters anew for every tensor of every reply;
    averaging 62 tensors of 100 replies takes 0.15 s that way. So this relies on how ``Array.data`` is packed,
    which is NumPy's file format 1.0. When that changes: every view is None, whoever asks falls back
    to ``Array.numpy()``, nothing but time is lost, and ``tests/kdfed/test_private.py`` says so.
    """
    header, data = _header(shape, dtype), array.data
    if array.stype != "numpy.ndarray" or not data.startswith(header):
        return None
    if len(data) != len(header) + prod(shape) * np.dtype(dtype).itemsize:
        return None
    return np.frombuffer(data, dtype, offset=len(header))


@lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what stands before the numbers in NumPy's file format."""
    file = BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"shape": shape, "fortran_order": False, "descr": description}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


# ----------------------------------------------------------------------------- strategies

aggregate_metrics = aggregate_metricrecords
"""How FedAvg and its like aggregate metrics where they were given no function of one's own.

A strategy holds it as ``train_metrics_aggr_fn``; that this very function is there tells that a weighted mean
of a cohort's metrics will do. When it moves: ``FedAvg().train_metrics_aggr_fn`` is the same object."""


log_start = log_strategy_start_info
"""Logs rounds, the bytes of the weights and the configurations, as ``Strategy.start`` does.

A strategy that brings its own ``start`` has no other way to begin its log like Flower's. When it moves: write
those four lines."""


CLIPPING_NORM = KEY_CLIPPING_NORM
"""Under which key of ``config`` a strategy of differential privacy tells how far participants clip.

``fixedclipping_mod`` and ``adaptiveclipping_mod`` answer an error to a message without it. When it moves:
write the key, ``clipping_norm``."""


# ----------------------------------------------------------------------------- Flower's simulation


def is_network(grid: object) -> bool:
    """Tell whether a grid is that of a SuperLink with real nodes.

    Flower gives a ServerApp of its simulation runtime another class of grid, and engines have their own.
    When it moves: a simulation's experiment on real nodes is refused by the nodes, after a hello; put the new
    name beside the old.
    """
    return type(grid).__name__ in _NETWORKS


_NETWORKS = frozenset({"HttpGrid"})

SIMULATION_ACTORS = frozenset({"flwr.simulation.ray_transport.ray_actor.ClientAppActor"})
"""Full names of the classes of Ray actors in which Flower's simulation runs ClientApps.

A process of one of these may be told whose data to use; a device never. When it moves: a simulated client
answers as a device would, "expected a participant in the node-config"; put the new name beside the old."""


# ----------------------------------------------------------------------------- a SuperLink of one's own

HEALTH = "/health"
"""Where a SuperLink answers 200 once it is ready. When it moves: any request that :class:`Control` makes."""

COMPLETED = "finished:completed"
"""How ``RunState.text`` says that a run has succeeded, in the words of ``flwr ls``."""


def silent_environment() -> dict[str, str]:
    """Return the variables with which Flower's processes talk to their SuperLink and to nobody else.

    FLWR_TELEMETRY_ENABLED and FLWR_DISABLE_UPDATE_CHECK are no documented interface. A name that moves is
    ignored in silence: look in the constants of ``flwr.common`` and ``flwr.supercore``.
    """
    return {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def superlink_environment(home: Path) -> dict[str, str]:
    """Return the variables for a SuperLink that belongs to one run and reaches for no network.

    Without FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION the SuperLink runs ``uv sync`` for the app, which
    fails offline and shadows installed packages. FLWR_SUPEREXEC_TASK_POLL_INTERVAL is in seconds, 1 by
    default, which a run of a few seconds would wait for. FLWR_HOME is documented. See
    :func:`silent_environment` for names that move.
    """
    return {
        **silent_environment(),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }


class Submitted(NamedTuple):
    """What ``flwr run`` answered: the run's id, or None and Flower's reason ("" where it gave none)."""

    run_id: int | None
    reason: str


def submitted(output: str) -> Submitted:
    """Read what ``flwr run --format json`` printed.

    The exit code does not tell what became of it, so the keys ``success``, ``run-id`` and ``error-message``
    decide; no page lists them. When they move: see ``flwr.cli.run.run`` and ``print_json_error``.
    """
    try:
        answer = json.loads(output)
    except json.JSONDecodeError:
        answer = {}
    if not answer.get("success"):
        return Submitted(None, answer.get("error-message") or "")
    return Submitted(int(answer["run-id"]), "")


class RunState(NamedTuple):
    """How far a run is: ``pending``, ``starting``, ``running`` or ``finished``; how it ended, and why."""

    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self.status == "finished"

    @property
    def text(self) -> str:
        """Both words, as ``flwr ls`` prints them."""
        return f"{self.status}:{self.sub_status}"


class Control:
    """Asks a SuperLink about a run, as ``flwr ls --run-id`` and ``flwr log`` do.

    Those commands would do, but each starts a Python process, for a question that is asked every second. When
    it moves: see what ``flwr.cli.utils`` opens for them, or start them (``flwr ls --run-id ID --format
    json``).

    Parameters
    ----------
    address
        ``host:port`` of a SuperLink without TLS.
    """

    def __init__(self, address: str) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self._client = ControlHttpClient.from_server_address(
            address, True, None, [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        )

    def state(self, run_id: int) -> RunState:
        """Return how far a run is."""
        from flwr.proto.control_pb2 import ListRunsRequest

        status = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunState(status.status, status.sub_status, status.details)

    def log(self, run_id: int) -> Iterator[str]:
        """Yield the log of a run from its start; ends when the run has."""
        from flwr.proto.control_pb2 import StreamLogsRequest

        for reply in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
            yield reply.log_output

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


# ----------------------------------------------------------------------------- a SuperNode of one's own

WARM_RELEASES = ("1.41", "1.42")
"""Releases of which the entries of this section were read and tried.

Those entries reach deeper into Flower than any other, and what they are for works without them, only slower:
in another release they are not used, and ``kdfed node`` says so. Read ``flwr.supernode`` of a new release,
run ``make test-flower`` and ``make test-deploy``, and add it."""


def warm_release() -> str | None:
    """Return the release that is installed, if it is one of :data:`WARM_RELEASES`; else None."""
    release = ".".join(version("flwr").split(".")[:2])
    return release if release in WARM_RELEASES else None


def node_environment(home: Path) -> dict[str, str]:
    """Return the variables of a device's processes, which talk to their SuperLink and to nobody else.

    See :func:`superlink_environment`: the same names, of which FLWR_HOME is where apps are unpacked.
    """
    return {**silent_environment(), "FLWR_HOME": str(home)}


class SuperNode:
    """Flower's SuperNode, run in this process; what it waits for, it waits for less long.

    Flower's looks for a message every 3 s, and for the reply to it every 0.5 s, by ``time.sleep`` with those
    numbers in ``flwr.supernode.start_client_internal``, whose ``time`` is replaced here: right after a
    message the next one is looked for sooner, and an idle node asks every 3 s as before. Nothing tells
    whoever runs ClientApps that there is a message, so they must keep asking; here ``received`` does. And of
    a ClientApp that has died the server hears after 60 s without a heartbeat; here as soon as
    :meth:`NodeTasks.fail` says so.

    When ``start_client_internal`` or ``NodeState`` move: leave out what does not fit any more. Everything
    works without it, and ``tests/bench/devices.py`` tells how much slower.

    Parameters
    ----------
    received
        Called for each message, from the SuperNode's own thread.
    """

    def __init__(self, received: Callable[[], None]) -> None:
        self._received = received
        self._last = time.monotonic()  # when there was a message or a reply
        self._said = ""

    def run(self, arguments: Sequence[str], parent: int) -> str:
        """Run until somebody ends it.

        Parameters
        ----------
        arguments
            Of ``flower-supernode``.
        parent
            The process with which it ends, also where that was killed.

        Returns
        -------
        str
            Why it has ended by itself, in Flower's words; "" where a signal asked for it.
        """
        from flwr.supercore.app_utils import start_parent_process_monitor
        from flwr.supernode import start_client_internal
        from flwr.supernode.cli.flower_supernode import flower_supernode
        from flwr.supernode.nodestate import nodestate_factory

        start_parent_process_monitor(parent)
        vars(start_client_internal)["time"] = self
        vars(nodestate_factory)["InMemoryNodeState"] = _node_state(self._stored)
        handler = logging.Handler(logging.ERROR)
        handler.emit = self._hear  # type: ignore[method-assign]
        logging.getLogger("flwr").addHandler(handler)
        before, sys.argv = sys.argv, ["flower-supernode", *arguments]
        try:
            flower_supernode()
        except SystemExit as end:
            return (self._said or f"exit code {end.code}") if end.code else ""
        finally:
            sys.argv = before
        return self._said or "its loop ended without a word"

    def sleep(self, seconds: float) -> None:
        """Stand in for ``time.sleep``: a tenth of what was waited so far, from a twelfth to all of it."""
        waited = time.monotonic() - self._last
        time.sleep(min(seconds, max(seconds / 12, waited / 10)))

    def _stored(self, message: Message) -> None:
        self._last = time.monotonic()
        if not message.metadata.reply_to_message_id:
            self._received()

    def _hear(self, record: logging.LogRecord) -> None:
        self._said = record.getMessage()


def _node_state(on_message: Callable[[Message], None]) -> type:
    """Return Flower's state of a SuperNode that tells of messages, and answers for ClientApps that died."""
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    class TellingNodeState(InMemoryNodeState):
        def store_message(self, message: Message) -> str | None:
            stored: str | None = super().store_message(message)
            on_message(message)
            return stored

        def finish_task(self, task_id: int, sub_status: str, details: str) -> bool:
            finished: bool = super().finish_task(task_id, sub_status, details)
            if finished and details.startswith(_DIED):
                runs = {task.run_id for task in self.get_tasks(task_ids=[task_id])}
                self.get_messages_legacy(run_ids=[*runs], is_reply=False)  # also what it had not fetched yet
                reason = details.removeprefix(_DIED)
                self._store_error_replies(runs, Error(ErrorCode.CLIENT_APP_CRASHED, reason))
            return finished

    return TellingNodeState


_DIED = "kdfed: "


class NodeTask(NamedTuple):
    """A message that waits for a ClientApp: the SuperNode's number for it, and the token that opens it."""

    number: int
    token: str


class NodeTasks:
    """Asks a SuperNode what waits for a ClientApp, as ``flower-superexec`` does.

    That command starts a fresh Python for each message, in which a client imports torch for seconds; it has
    no option for another way. When it moves: see what ``flwr.supercore.superexec.run_superexec`` asks, or
    leave the SuperNode to its own ``--isolation subprocess``.

    Parameters
    ----------
    address
        ``host:port`` where the SuperNode serves its client, without TLS: the loopback interface.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = _runtime(address)

    def next(self) -> NodeTask | None:
        """Take the oldest task that nobody has; None where there is none, or nobody answers."""
        import httpx
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:
            return None
        if not (answer.HasField("task") and answer.token):
            return None
        return NodeTask(answer.task.task_id, answer.token)

    def fail(self, task: NodeTask, reason: str) -> None:
        """Say that the client of a task has died; nothing happens where it had finished, or nobody hears."""
        import httpx
        from flwr.common.constant import SubStatus
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest

        client = _runtime(self._address, task.token)
        try:
            client.PushTaskOutput(
                PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=f"{_DIED}{reason}")
            )
        except httpx.HTTPError:
            pass
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _runtime(address: str, token: str | None = None) -> Any:
    from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    if token is not None:
        interceptors.append(RuntimeTokenHttpInterceptor(token))
    return RuntimeHttpClient.from_server_address(address, True, None, interceptors)


def answer_task(address: str, task: NodeTask, parent: int) -> None:
    """Do in this process what ``flwr-clientapp`` does: fetch the message, run the ClientApp, send its reply.

    It ends with ``SystemExit``, and on its way there may leave threads behind, so the process must end with
    it. When it moves: see what ``flwr.supernode.cli.flwr_clientapp`` calls.

    Parameters
    ----------
    address
        Where the SuperNode serves its client.
    parent
        The process with which this one ends.
    """
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    run_clientapp(runtime_api_address=address, token=task.token, insecure=True, parent_pid=parent)


# ----------------------------------------------------------------------------- for tests alone

# NodeInfo: what the public ``Grid.get_nodes`` returns; the contract of a grid checks it. When it moves: see
# where ``flwr.serverapp.Grid`` has it from.

# sample_nodes: how Flower's strategies choose nodes. It waits for ever below the least number, which the
# participant grid must notice also where the strategy is somebody's own. When it moves: configure a FedAvg
# that wants more nodes than there are.

SAMPLING_SLEEP = "flwr.serverapp.strategy.strategy_utils.sleep"
"""What ``sample_nodes`` waits with between two looks, 1 s in both releases: a test replaces it."""


def app_bundle(folder: Path) -> bytes:
    """Return the zip file that ``flwr run`` makes of an app; ``flwr build`` is the public way, and slower."""
    from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(folder)


def app_complaints(settings: Path) -> list[str]:
    """Return Flower's warnings about an app's ``pyproject.toml``; ``flwr run`` shows errors alone."""
    from flwr.cli.config_utils import load_and_validate

    found: Any = load_and_validate(settings)
    return list(found[1])
