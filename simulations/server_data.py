"""What the server side of a run is given of a data set."""

from __future__ import annotations

import numpy as np
import torch

from kdfed.data import PreparedData
from kdfed.reading import examples_for
from kdfed.settings import ModelSettings
from strategies.arm_config import HeldOut, ServerData


def server_data(
    data: PreparedData,
    model: ModelSettings | None = None,
    device: torch.device | str = "cpu",
    validation: np.ndarray | None = None,
) -> ServerData:
    """Return what the server holds of a data set: the held-out splits, and nothing of the train split.

    Parameters
    ----------
    data
        The data set.
    model
        The federated model, which reads them. Default: one without a backbone.
    device
        Where a frozen part is computed.
    validation
        Which examples are those of the validation split, int64. Default: the split's own.
    """
    splits = data.splits
    held = splits.validation if validation is None else validation
    return ServerData(
        transfer=examples_for(model, data, splits.transfer, device),
        validation=examples_for(model, data, held, device),
        transfer_inputs=data.dataset.inputs[splits.transfer],
        classes=data.classes,
        task=data.task,
        validation_inputs=data.dataset.inputs[held],
        normalisation=data.normalisation,
    )


def held_out_data(
    data: PreparedData, model: ModelSettings | None = None, device: torch.device | str = "cpu"
) -> HeldOut:
    """Return what rounds are counted on, as the federated model reads it; see :func:`server_data`."""
    splits = data.splits
    return HeldOut(
        examples_for(model, data, splits.evaluation, device), examples_for(model, data, splits.test, device)
    )
