"""What a message may make a device allocate and read: about as much as it carries, and no file.

In a simulation server and participants are the same user's. A device must outlive a server that asks for a
model of a billion weights, for statistics of a million features, or for weights from a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from flwr.app import ArrayRecord, RecordDict

from kdfed.arrays import Spec, problem_with_arrays, spec_of
from kdfed.backbones import is_shipped_backbone
from kdfed.backbones.features import BATCH
from kdfed.backbones.torchvision import count_numbers
from kdfed.choosing import parts
from kdfed.errors import ParticipantError, shown
from kdfed.local import LOCAL_MODES
from kdfed.messages import Asked
from kdfed.models import State, find_model, is_shipped
from kdfed.settings import ModelSettings, TeacherSettings

MOST_NUMBERS = 2**26
"""Weights of a model, or numbers of statistics, for which a message need not carry anything: 256 MiB."""

MOST_PIXELS = 2**24
"""Of the images that a backbone computes together: 192 MiB of colour as float32, and several times as much
behind its first layers. 32 images of 724 x 724 pixels; the largest that torchvision's were trained on have
600 x 600."""


def check_models(
    content: RecordDict, config: Mapping[str, Any], shape: tuple[int, ...], classes: int
) -> None:
    """Refuse models that are larger than what a message carries, and weights that it names a file of.

    Parameters
    ----------
    content
        The message.
    config
        Its settings.
    shape, classes
        Of the device's data.

    Raises
    ------
    ParticipantError
        If there is one. Nothing was allocated.
    """
    carried = sum(
        len(array.data)
        for record in content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )
    most = max(MOST_NUMBERS, carried)
    for model in _models(config):
        if model.backbone is not None and model.weights != "installed":
            raise ParticipantError(
                f"expected model.weights 'installed' on a device, got {shown(model.weights)}: no message "
                "names a file to read, or has one fetched"
            )
        _check_pixels(model)
        _check_backbone(model)
        if model.backbone is None and is_shipped(model.name):
            needed = _numbers(model, shape, classes)
            if needed > most:
                raise ParticipantError(
                    f"expected a model of at most {most} numbers, {shown(model.name)} with options "
                    f"{shown(model.options)} has {needed}"
                )


def _check_pixels(model: ModelSettings) -> None:
    """Refuse images of a backbone's that are larger than a device has room for."""
    if model.backbone is None:
        return
    sizes = {"model.size": model.size, "model.options.image_size": model.options.get("image_size")}
    most = math.isqrt(MOST_PIXELS // BATCH)
    for key, size in sizes.items():
        if isinstance(size, int | float) and not size <= most:
            raise ParticipantError(
                f"expected {key} of at most {most} on a device, got {shown(size)}: {BATCH} images of that "
                f"size are computed together, and they may have {MOST_PIXELS} pixels"
            )


def _check_backbone(model: ModelSettings) -> None:
    """Refuse options that make a network larger than the one whose weights are installed."""
    name = model.backbone or ""
    if not (name.startswith("torchvision:") and is_shipped_backbone(name) and model.options):
        return
    most = max(MOST_NUMBERS, count_numbers(name, {}))
    needed = count_numbers(name, model.options)
    if needed > most:
        raise ParticipantError(
            f"expected a backbone of at most {most} numbers, {name} with options {shown(model.options)} has "
            f"{needed}"
        )


def _models(config: Mapping[str, Any]) -> Iterator[ModelSettings]:
    """Yield the models that settings name, at any depth; what cannot be read, whoever reads it refuses."""
    readers = (
        ("model", ModelSettings.model_validate_json),
        ("teachers", TeacherSettings.model_validate_json),
        ("local", LOCAL_MODES.parse),
    )
    for key, read in readers:
        if key in config:
            settings = None
            with suppress(Exception):
                settings = read(str(config[key]))
            for _, part in () if settings is None else parts(settings, key):
                if isinstance(part, ModelSettings):
                    yield part


def _numbers(model: ModelSettings, shape: tuple[int, ...], classes: int) -> int:
    """Count a model's weights and buffers without room for any; 0 where it cannot be built."""
    with suppress(Exception), torch.device("meta"):
        bare = find_model(model.name).build(shape, classes, **model.options)
        return sum(math.prod(values.shape) for values in bare.state_dict().values())
    return 0


def check_statistics(spec: Spec) -> None:
    """Refuse statistics of more numbers than a device has room for.

    Raises
    ------
    ParticipantError
        If there are more.
    """
    needed = sum(math.prod(shape) for shape, _ in spec.values())
    if needed > MOST_NUMBERS:
        raise ParticipantError(f"expected statistics of at most {MOST_NUMBERS} numbers, got {needed}")


def check_arrays(asked: Asked, template: torch.nn.Module) -> None:
    """Refuse weights that are not those of the model that a message names.

    Raises
    ------
    ParticipantError
        If they have other keys, shapes or dtypes, or are not finite.
    """
    sent: State = {**asked.arrays, **asked.fixed}
    if not sent:
        return
    spec = spec_of(template.state_dict())
    wanted = spec if set(sent) == set(spec) else {key: spec[key] for key in spec if key in sent}
    problem = problem_with_arrays(sent, wanted)
    if problem is not None:
        raise ParticipantError(f"expected the weights of the model that the message names: {problem}")
