"""kdfed's ClientApp on a device that does what it should not, where a file in its folder says so.

The file ``faults/train-2`` is about the training message of round 2, ``faults/train.teacher-0`` about that of
the teachers. It holds the name of a lie, or ``hold``: the answer waits until the file is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.client_app import app as honest
from kdfed.messages import COHORTS, CONFIG, Answers

FAULTS = "faults"
BEGUN = ".begun"
LONGEST = 400.0


class Faulty(ClientApp):
    """Answers as kdfed's does, and then changes the answer."""

    def __call__(self, message: Message, context: Context) -> Message:
        number = message.content[CONFIG].get("server-round", 0) if CONFIG in message.content else 0
        file = Path(os.environ["FLWR_HOME"]).parent / FAULTS / f"{message.metadata.message_type}-{number}"
        if not file.exists():
            return honest(message, context)
        fault = file.read_text()
        file.with_name(file.name + BEGUN).touch()
        if fault != "hold":
            reply = honest(message, context)
            LIES[fault](reply.content)
            return reply
        end = time.monotonic() + LONGEST
        while file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return honest(message, context)


def _arrays(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordDict], None]:
    """Return what changes all weights of an answer."""

    def lie(content: RecordDict) -> None:
        arrays = {key: Array(change(array.numpy())) for key, array in content["arrays"].items()}
        content["arrays"] = ArrayRecord(arrays)

    return lie


def _metrics(**values: int | float) -> Callable[[RecordDict], None]:
    """Return what changes some metrics of an answer."""
    named = {key.replace("_", "-"): value for key, value in values.items()}

    def lie(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**content["metrics"], **named})

    return lie


def _truncate(content: RecordDict) -> None:
    arrays = {
        key: Array(array.dtype, array.shape, array.stype, array.data[:-7])
        for key, array in content["arrays"].items()
    }
    content["arrays"] = ArrayRecord(arrays)


def _forge(content: RecordDict) -> None:
    """Answer for participant 0, who is somebody else."""
    content[COHORTS] = Answers((0,), (0,), (1,), ("",)).to_record()


LIES: dict[str, Callable[[RecordDict], None]] = {
    "nan": _arrays(lambda array: np.full_like(array, np.nan)),
    "huge": _arrays(lambda array: np.full_like(array, 1e20)),
    "shape": _arrays(lambda array: np.zeros((*array.shape, 2), array.dtype)),
    "truncated": _truncate,
    "forged": _forge,
    "examples": _metrics(num_examples=10**12),
    "steps": _metrics(local_steps=10**9),
    "loss": _metrics(train_loss=1e300),
}

app = Faulty()
