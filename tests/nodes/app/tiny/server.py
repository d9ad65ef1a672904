"""Sends each node a message some times, one exchange after the other, and writes down what came back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    out = Path(str(config["out"]))
    while len(nodes := sorted(grid.get_node_ids())) < int(config["nodes"]):
        time.sleep(0.1)
    arrays = ArrayRecord({name: Array(np.zeros(shape, np.float32)) for name, shape in SHAPES.items()})
    for number in range(int(config["exchanges"])):
        time.sleep(float(config["pause"]))
        asked = ConfigRecord({"work": str(config["work"]), "number": number})
        began = time.monotonic()
        messages = [
            Message(
                RecordDict({"arrays": arrays, "config": asked}), node, "train", ttl=float(config["timeout"])
            )
            for node in nodes
        ]
        waiting = set(grid.push_messages(messages))
        replies: list[Message] = []
        while waiting and time.monotonic() - began < float(config["timeout"]):
            for reply in grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            time.sleep(0.1)
        line = {"exchange": number, "seconds": time.monotonic() - began, "lost": len(waiting), "replies": []}
        for reply in replies:
            if reply.has_error():
                line["replies"].append({"code": reply.error.code, "error": reply.error.reason})
            else:
                line["replies"].append(dict(reply.content["metrics"]))
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


SHAPES = {
    "conv1": (8, 1, 3, 3),
    "bias1": (8,),
    "conv2": (16, 8, 3, 3),
    "bias2": (16,),
    "head": (10, 784),
    "bias3": (10,),
}
