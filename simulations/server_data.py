"""What the server side of a run is given of a data set."""

from __future__ import annotations

from kdfed.data import PreparedData
from strategies.arm_config import HeldOut, ServerData


def server_data(data: PreparedData) -> ServerData:
    """Return what the server holds of a data set: the held-out splits, and nothing of the train split."""
    splits = data.splits
    return ServerData(
        transfer=data.examples(splits.transfer),
        validation=data.examples(splits.validation),
        transfer_inputs=data.dataset.inputs[splits.transfer],
        classes=data.classes,
        task=data.task,
    )


def held_out_data(data: PreparedData) -> HeldOut:
    """Return what rounds are counted on."""
    return HeldOut(data.examples(data.splits.evaluation), data.examples(data.splits.test))
