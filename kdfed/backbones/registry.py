"""The visible registry of backbones: one file a family of backbones, and one line here."""

from __future__ import annotations

from kdfed.backbones import efficientnet_lite, torchvision, user
from kdfed.backbones.backbone import Backbone, Origin
from kdfed.backbones.settings import BackboneSettings
from kdfed.errors import KdfedError, expected_one_of

USERS = "package.module:name"

BACKBONES: dict[str, Backbone | Origin] = {
    **efficientnet_lite.BACKBONES,
    "torchvision:NAME": torchvision.BACKBONES,
    USERS: user.BACKBONES,
}
"""What can stand in ``model.backbone``."""


def find_backbone(name: str) -> Backbone:
    """Return the backbone that a name stands for.

    Raises
    ------
    KdfedError
        If there is none of this name.
    """
    entry = _entry(name)
    if entry is None:
        raise KdfedError(expected_one_of([key for key in BACKBONES if key != USERS], name))
    return entry.find(name) if isinstance(entry, Origin) else entry


def is_shipped_backbone(name: str) -> bool:
    """Tell whether a name stands for nobody's code but kdfed's and its dependencies'."""
    entry = _entry(name)
    if isinstance(entry, Origin):
        return entry.shipped is not None and entry.shipped.fullmatch(name) is not None
    return entry is not None


def check_backbone(settings: BackboneSettings) -> str | None:
    """Say what is wrong with a backbone's name or options; None when nothing is. No weights are read."""
    try:
        return find_backbone(settings.backbone).problem(settings.options)
    except KdfedError as error:
        return str(error)


def _entry(name: str) -> Backbone | Origin | None:
    origin, colon, _ = name.partition(":")
    if not colon:
        return BACKBONES.get(name)
    return BACKBONES["torchvision:NAME"] if origin == "torchvision" else BACKBONES[USERS]
