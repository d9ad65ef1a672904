"""The visible registry of models: one file a model, and one line here."""

from __future__ import annotations

from kdfed.errors import KdfedError, shown
from kdfed.models import cnn, mlp, resnet8, resnet18, torchvision, user
from kdfed.models.model import Model, Origin, near

USERS = "package.module:name"

MODELS: dict[str, Model | Origin] = {
    "cnn": cnn.MODEL,
    "mlp": mlp.MODEL,
    "resnet8": resnet8.MODEL,
    "resnet18": resnet18.MODEL,
    "torchvision:NAME": torchvision.MODELS,
    USERS: user.MODELS,
}
"""What can stand in ``model.name``."""


def find_model(name: str) -> Model:
    """Return the model that a name stands for.

    Raises
    ------
    KdfedError
        If there is none of this name.
    """
    entry = _entry(name)
    if entry is None:
        raise KdfedError(f"unknown model {shown(name)}{near(name, MODELS)}")
    return entry.find(name) if isinstance(entry, Origin) else entry


def is_shipped(name: str) -> bool:
    """Tell whether a name stands for nobody's code but kdfed's and its dependencies'."""
    entry = _entry(name)
    if isinstance(entry, Origin):
        return entry.shipped is not None and entry.shipped.fullmatch(name) is not None
    return entry is not None


def _entry(name: str) -> Model | Origin | None:
    origin, colon, _ = name.partition(":")
    if not colon:
        return MODELS.get(name)
    return next((MODELS[key] for key in MODELS if key.startswith(origin + colon)), MODELS[USERS])
