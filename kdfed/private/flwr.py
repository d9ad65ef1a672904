"""What kdfed uses of Flower beyond its documented interface. See :mod:`kdfed.private` for the rule.

Every entry was seen in flwr 1.41.0 and 1.42.0, alike in both. ``make test-flower`` tries the releases that
``pyproject.toml`` allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from functools import lru_cache
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
    "Control",
    "Identity",
    "NodeInfo",
    "Run",
    "RunState",
    "aggregate_metrics",
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
    "readdressed",
    "restore",
    "sample_nodes",
    "submitted",
    "superlink_environment",
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


def superlink_environment(home: Path) -> dict[str, str]:
    """Return the variables for a SuperLink that belongs to one run and reaches for no network.

    Without FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION the SuperLink runs ``uv sync`` for the app, which
    fails offline and shadows installed packages. FLWR_TELEMETRY_ENABLED and FLWR_DISABLE_UPDATE_CHECK keep it
    silent. FLWR_SUPEREXEC_TASK_POLL_INTERVAL is in seconds, 1 by default, which a run of a few seconds would
    wait for. FLWR_HOME is documented. A name that moves is ignored in silence: look in the constants of
    ``flwr.common`` and ``flwr.supercore``.
    """
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
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
