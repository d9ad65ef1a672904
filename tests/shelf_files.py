"""Teachers in files, and experiments that name them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdfed.config import Experiment
from kdfed.data import prepare
from kdfed.models import build_model, state_of
from kdfed.saved import Card, save
from kdfed.settings import ModelSettings, TeacherSettings
from tests.small_backbones import OTHER, TINY

Build = Callable[..., Experiment]

HEAD = {"backbone": TINY}
LAST = {"backbone": TINY, "trainable": "last:1"}
ON_OTHER = {"backbone": OTHER}
CNN = {"name": "cnn", "options": {"width": 2}}
MLP = {"name": "mlp", "options": {"hidden": [16]}}
UNTRAINED = {key: value for key, value in TeacherSettings().model_dump(mode="json").items() if key != "from"}
"""What a resolved experiment says of ``teachers`` beside ``from``: every key at its default, for nothing."""


def written(
    folder: Path, experiment: Experiment, *models: dict[str, Any], classes: tuple[str, ...] = ()
) -> list[Any]:
    """Write one teacher of each model; return what ``teachers.from`` says of them."""
    data, found = prepare(experiment.data), []
    for number, given in enumerate(models):
        settings = ModelSettings.model_validate_json(json.dumps(given))
        card = Card.of(settings, experiment.data, data)
        card = card.model_copy(update={"classes": classes}) if classes else card
        path = folder / f"{number}.safetensors"
        model = build_model(settings, data.input_shape, card.outputs, number)
        with torch.no_grad():  # far apart, so that they disagree
            for parameter in model.parameters():
                parameter.mul_(3)
        save(path, state_of(model), card)
        found.append({"file": str(path), "model": given} if "backbone" in given else str(path))
    return found


def with_teachers(tiny: Build, where: Any, **changes: Any) -> Experiment:
    return tiny(only="consolidated", **{"teachers": {"from": where, **UNTRAINED}, **changes})
