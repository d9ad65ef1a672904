"""kdfed's ClientApp on a device that writes down how large each message is that it gets and sends."""

from __future__ import annotations

import json
import os
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.client_app import app as honest

FILE = "counted.jsonl"


class Counted(ClientApp):
    """Answers as kdfed's does."""

    def __call__(self, message: Message, context: Context) -> Message:
        kind, down = message.metadata.message_type, _bytes(message.content)
        reply = honest(message, context)
        line = {"type": kind, "down": down, "up": _bytes(reply.content)}
        with (Path(os.environ["FLWR_HOME"]).parent / FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return reply


def _bytes(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())


app = Counted()
