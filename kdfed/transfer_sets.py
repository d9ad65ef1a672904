"""Transfer sets: the examples on which teachers and student are compared while distilling.

Those that need no participant's data are made here, for studies and for the server of a federated run; those
that hold participants' examples exist in studies only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from kdfed.config import ConsolidationBase, DataSettings, GeneratorSettings
from kdfed.data import Examples, prepare
from kdfed.errors import DataError, KdfedError, unknown
from kdfed.generated import generate

TRANSFER_SETS: dict[str, str] = {
    "public": "the held-out transfer split, the only one with labels in a federated run",
    "noise": "independent standard normal values, after normalisation; no labels",
    "proxy": "images of another data set, resized; labels never used",
    "generated": "drawn from a generator that is trained against the teachers (DAFL); no data, no labels",
    "own": "the student's own examples; in a study only",
    "teacher": "the examples of its teachers; in a study only",
    "union": "the student's own examples and its teachers'; in a study only",
}
"""What can stand in ``consolidation.transfer``, and in the ``transfer`` of a study."""


def transfer_set(
    settings: ConsolidationBase, public: Examples, teachers: Sequence[nn.Module], seed: int
) -> Examples:
    """Return the transfer set of a federated run.

    Parameters
    ----------
    settings
        Which, and how many examples.
    public
        The transfer split.
    teachers
        Read by ``generated``. Empty where only logits on the transfer split were uploaded.
    seed
        Derived seed of every draw.

    Raises
    ------
    KdfedError
        If labels or uploaded logits are to be used with another set than ``public``, or it cannot be made;
        see :func:`proxy` and :func:`kdfed.generated.generate`.
    """
    if settings.transfer == "public":
        return public
    if settings.labels or not teachers:
        raise KdfedError(
            f"transfer {settings.transfer!r} has no labels and needs the teachers' weights; set labels: "
            "false and teachers.upload: weights"
        )
    shape, count = tuple(public.inputs.shape[1:]), settings.images or len(public)
    if settings.transfer == "noise":
        return noise(shape, count, seed)
    if settings.transfer == "proxy":
        if settings.proxy is None:
            raise KdfedError("transfer 'proxy' needs the settings of another data set, got none; set proxy")
        return proxy(settings.proxy, shape, count, seed)
    if settings.transfer == "generated":
        made = generate(teachers, shape, count, settings.generator or GeneratorSettings(), seed)
        return without_labels(made)
    raise unknown(
        "consolidation.transfer", settings.transfer, TRANSFER_SETS, "kdfed.transfer_sets.transfer_set"
    )


def noise(input_shape: tuple[int, ...], count: int, seed: int) -> Examples:
    """Return ``count`` unlabelled examples of independent standard normal values."""
    draw = torch.Generator().manual_seed(seed)
    return without_labels(torch.randn(count, *input_shape, generator=draw))


def proxy(settings: DataSettings, input_shape: tuple[int, ...], count: int, seed: int) -> Examples:
    """Return ``count`` unlabelled images of another data set, drawn from what it holds out for no test.

    Parameters
    ----------
    settings
        The other data set, normalised in its own way; its train and transfer splits are used.
    input_shape
        Shape of one input of the task, (channels, height, width): images are converted and resized to it.
    count
        How many to draw, without replacement.
    seed
        Derived seed of the draw.

    Raises
    ------
    DataError
        If the task has no images, the other data set cannot be read or resized, or it has too few.
    """
    if len(input_shape) != 3:
        raise DataError(
            f"a proxy needs images, got inputs of shape {input_shape}; use noise or generated", "proxy"
        )
    try:
        data = prepare(DataSettings.model_validate({**settings.model_dump(), "shape": input_shape}))
    except DataError as error:
        if error.key == "data.shape":
            raise DataError(
                f"a proxy needs images that can be converted to {list(input_shape)}, those of "
                f"{settings.source!r} cannot; name another data set ({error})",
                "proxy.source",
            ) from error
        raise DataError(str(error), f"proxy{error.key.removeprefix('data')}") from error
    places = np.concatenate([data.splits.transfer, data.splits.train])
    if len(places) < count:
        raise DataError(f"expected {count} images of the proxy, got {len(places)}; lower images", "proxy")
    chosen = np.random.default_rng(seed).permutation(len(places))[:count]
    return without_labels(data.examples(places[chosen]).inputs)


def without_labels(inputs: torch.Tensor) -> Examples:
    """Return unlabelled examples; the zeros in place of their labels are never read."""
    return Examples(inputs, torch.zeros(len(inputs), dtype=torch.int64))
