"""What a model reads of inputs as data sets store them: normalised, or the activations at its backbone's cut.

What lies below a cut is computed once for the same images (:mod:`kdfed.backbones.features`), whoever asks:
all arms and seeds of a process, and all processes of a machine.

Shape suffix: N examples.
"""

from __future__ import annotations

import numpy as np
import torch

from kdfed.backbones import BackboneSettings, Cut, default_cache, split
from kdfed.data import Examples, Normalisation, PreparedData
from kdfed.settings import ModelSettings


def cut_of(model: ModelSettings) -> Cut | None:
    """Return a model's backbone, cut in two; None of a model without one."""
    return None if model.backbone is None else split(BackboneSettings.of(model))


def shape_read(model: ModelSettings, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one input as a model reads it, from that of one as a data set stores it."""
    cut = cut_of(model)
    return input_shape if cut is None else cut.shape


def inputs_for(
    model: ModelSettings | None,
    stored: np.ndarray,
    normalisation: Normalisation,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return inputs as a model reads them.

    Parameters
    ----------
    model
        None for one without a backbone.
    stored
        As a data set stores them, [N, ...].
    normalisation
        Of the data set; a backbone has its own.
    device
        Where a frozen part is computed.

    Returns
    -------
    torch.Tensor
        float32 [N, ...] on the CPU: normalised, or activations, which others read too and nobody changes.

    Raises
    ------
    DataError
        If a backbone cannot be had, or what is stored are no images.
    """
    cut = None if model is None else cut_of(model)
    if cut is None:
        return normalisation.apply(stored)
    return default_cache().activations(cut, stored, device)


def examples_for(
    model: ModelSettings | None,
    data: PreparedData,
    indices: np.ndarray,
    device: torch.device | str = "cpu",
) -> Examples:
    """Return the examples at int64 ``indices`` as a model reads them; see :func:`inputs_for`."""
    if model is None or model.backbone is None:
        return data.examples(indices)
    stored = data.dataset.inputs[indices]
    return Examples(inputs_for(model, stored, data.normalisation, device), data.labels(indices))
