"""Trains a small network, and says which process did."""

from __future__ import annotations

import os
import sys
import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    began = time.monotonic()
    if config["work"] == "wait" and config["number"] == 0:
        print("waits", file=sys.stderr, flush=True)
        time.sleep(60)
    imported = len(sys.modules)
    if config["work"] == "train":
        _train()
    metrics = MetricRecord(
        {
            "num-examples": 1,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "seconds": time.monotonic() - began,
            "imported": len(sys.modules) - imported,
            "torch": int("torch" in sys.modules),
            "dynamo": int("torch._dynamo" in sys.modules),
        }
    )
    content = RecordDict({"arrays": ArrayRecord(dict(message.content["arrays"])), "metrics": metrics})
    return Message(content, reply_to=message)


def _train() -> None:
    """Make the 63 steps of a participant with 630 small images, as clients.client_app does."""
    import torch

    from kdfed.cohort import train_cohort
    from kdfed.data import Examples
    from kdfed.local import plain_loss
    from kdfed.models import build_model, state_of
    from kdfed.settings import ModelSettings, OptimiserSettings
    from kdfed.setup import Setup
    from kdfed.task import CLASSIFICATION

    setup = Setup(CLASSIFICATION, torch.device("cpu"), threads=1, precision="float32")
    setup.settle()
    model = build_model(ModelSettings(name="cnn"), (1, 28, 28), 10, seed=0)
    examples = Examples(torch.rand(630, 1, 28, 28), torch.arange(630) % 10)
    settings = OptimiserSettings(epochs=1, batch_size=10, lr=0.05, momentum=0.9)
    parts = train_cohort(
        model, state_of(model), examples, [630], settings, plain_loss(CLASSIFICATION), [0], setup=setup
    )
    (steps,) = [result.steps for part in parts for result in part.results]
    if steps != 63:
        raise RuntimeError(f"expected 63 steps, got {steps}")
