"""What of a user's is named in settings: code that neither kdfed nor torchvision ships, and model files."""

from __future__ import annotations

from collections.abc import Iterator

from kdfed.backbones import is_shipped_backbone
from kdfed.choosing import parts
from kdfed.config import Arm
from kdfed.config.checks import used_parts
from kdfed.data.sources import SOURCES, kind_of
from kdfed.families import ALL_FAMILIES
from kdfed.models import is_shipped
from kdfed.named import is_named
from kdfed.settings import DataSettings, ModelSettings, ServerDataSettings, Settings, TeacherSettings


def is_shipped_source(name: str) -> bool:
    """Tell whether a data source is one of kdfed's, never ``package.module:name``."""
    return kind_of(name) in SOURCES


def outside_names(*settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what settings name that is not shipped: what it is, and its name.

    Models and data sources count at any depth, and every thing of a family.
    """
    for part in (part for one in settings for _, part in parts(one, "")):
        if isinstance(part, ModelSettings) and part.backbone is not None:
            if not is_shipped_backbone(part.backbone):
                yield "backbone", part.backbone
        elif isinstance(part, ModelSettings) and not is_shipped(part.name):
            yield "model", part.name
        if isinstance(part, DataSettings | ServerDataSettings) and not is_shipped_source(part.source):
            yield "data source", part.source
        for family in ALL_FAMILIES:
            if isinstance(part, family.base) and is_named(name := getattr(part, family.tag)):
                yield family.noun, name


def code_of(arm: Arm) -> list[str]:
    """Return every ``package.module:name`` of a user's that an arm names, sorted."""
    sections: tuple[Settings, ...] = (
        arm.data,
        arm.partition,
        arm.model,
        arm.local,
        arm.teachers,
        arm.consolidation,
        arm.server,
    )
    sections += tuple(one for one in (arm.closed_form, arm.server_data) if one is not None)
    names = {name for _, name in outside_names(*sections)} | {getattr(arm.server, "digest_loss", "")}
    names |= {listener.name for listener in arm.listeners}
    return sorted(name for name in names if is_named(name))


def models_of(arm: Arm) -> list[str]:
    """Return every file of a model that an arm reads, sorted: paths, and folders of such files.

    They are what its teachers, its start and its backbones are read from.
    """
    start = arm.start.removeprefix("file:")
    found = {start} if start != arm.start else set()
    for _, part in used_parts(arm):
        if isinstance(part, TeacherSettings):
            found |= set(part.files)
        if isinstance(part, ModelSettings) and part.weights.startswith("file:"):
            found.add(part.weights.removeprefix("file:"))
    return sorted(found)
