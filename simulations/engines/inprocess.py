"""The same messages without processes: for tests, debugging and small runs."""

from __future__ import annotations

import random
from collections.abc import Iterable
from copy import deepcopy
from time import monotonic, sleep
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients.client_app import app as client_app
from clients.participant import IN_PROCESS
from kdfed.config import Experiment
from kdfed.events import OnEvent
from kdfed.records import RunFolder
from simulations.server_app import run_experiment

_SERVER_NODE = 1
_FIRST_NODE = 1001


def run(experiment: Experiment, folder: RunFolder, *, nodes: int, on_event: OnEvent) -> None:
    """Run an experiment in this process.

    Parameters
    ----------
    nodes
        Nodes that cohorts are dealt to; they take turns, and the result does not depend on their number.

    Raises
    ------
    RunError
        If the run failed.
    """
    run_experiment(InProcessGrid(client_app, nodes), experiment, folder, "inprocess", on_event)


class InProcessGrid(Grid):
    """A Flower Grid that calls the ClientApp when replies are pulled.

    Parameters
    ----------
    app
        The ClientApp of every node.
    nodes
        Number of nodes, 1 or larger.
    order
        Shuffles the order in which messages are handled and replies arrive. Default: as sent.
    """

    def __init__(self, app: ClientApp, nodes: int, order: random.Random | None = None) -> None:
        self.app = app
        self.order = order
        self._run = Run.create_empty(run_id=1)
        self._contexts = {
            _FIRST_NODE + index: Context(
                run_id=1,
                node_id=_FIRST_NODE + index,
                node_config={"partition-id": index, "num-partitions": nodes, IN_PROCESS: True},
                state=RecordDict(),
                run_config={},
            )
            for index in range(nodes)
        }
        self._pending: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SERVER_NODE, 1

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
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they are handled when their replies are pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Handle the messages of these ids that are pending, and return their replies."""
        wanted = [message_id for message_id in message_ids if message_id in self._pending]
        if self.order is not None:
            self.order.shuffle(wanted)
        return [self._handle(self._pending.pop(message_id)) for message_id in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages, and pull until every reply is here or ``timeout`` seconds have passed."""
        waiting = set(self.push_messages(messages))
        end = monotonic() + (timeout if timeout is not None else float("inf"))
        replies: list[Message] = []
        while waiting and monotonic() < end:
            arrived = list(self.pull_messages(sorted(waiting)))
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            if waiting:
                sleep(0.01)
        return replies

    def _handle(self, message: Message) -> Message:
        try:
            reply = self.app(deepcopy(message), self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        return reply
