"""The grid of the in-process engine: nodes that are objects of this process."""

from __future__ import annotations

import random
from collections.abc import Iterable
from copy import deepcopy
from uuid import uuid4

from flwr.app import Message
from flwr.clientapp import ClientApp

from clients.actors import IN_PROCESS
from kdfed.private.flwr import name_message
from simulations.engines.local_grid import LocalGrid, call


class InProcessGrid(LocalGrid):
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

    pause = 0.01

    def __init__(self, app: ClientApp, nodes: int, order: random.Random | None = None) -> None:
        self.app = app
        self.order = order
        super().__init__(nodes, **{IN_PROCESS: True})
        self._pending: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they are handled when their replies are pulled."""
        ids = []
        for message in messages:
            name_message(message, str(uuid4()))
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Handle the messages of these ids that are pending, and return their replies."""
        wanted = [message_id for message_id in message_ids if message_id in self._pending]
        if self.order is not None:
            self.order.shuffle(wanted)
        return [self._handle(self._pending.pop(message_id)) for message_id in wanted]

    def _handle(self, message: Message) -> Message:
        reply = call(self.app, deepcopy(message), self._contexts[message.metadata.dst_node_id])
        name_message(reply, str(uuid4()))
        return reply
