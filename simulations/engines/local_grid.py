"""What the grids of this machine share: nodes that own nobody, and Flower's plain methods."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from time import monotonic, sleep
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from kdfed.private.flwr import Run, empty_run, error_reply, identify
from kdfed.reasons import reason_of

_SERVER_NODE = 1
_FIRST_NODE = 1001


class LocalGrid(Grid, ABC):
    """A Flower Grid with nodes of its own; how messages are pushed and pulled is left to the engine.

    Parameters
    ----------
    nodes
        Number of nodes, 1 or larger.
    node_config
        What every node's config holds beside ``partition-id`` and ``num-partitions``.
    """

    pause = 0.0
    """Seconds between two looks for replies, where pulling does not wait by itself."""

    def __init__(self, nodes: int, **node_config: Any) -> None:
        self._run = empty_run()
        self._contexts = {
            _FIRST_NODE + index: Context(
                run_id=1,
                node_id=_FIRST_NODE + index,
                node_config={"partition-id": index, "num-partitions": nodes, **node_config},
                state=RecordDict(),
                run_config={},
            )
            for index in range(nodes)
        }
        identify(run_id=1, node_id=_SERVER_NODE)

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
            if waiting and self.pause:
                sleep(self.pause)
        return replies


def call(app: ClientApp, message: Message, context: Context) -> Message:
    """Return a ClientApp's reply; an exception becomes an error reply."""
    try:
        return app(message, context)
    except Exception as error:
        return error_reply(message, reason_of(error))
