"""The gate for names in messages: nothing is imported, allocated or built because a message says so.

A simulation's message may name whatever its experiment names: participants and server are the same user's. A
device looks up only what kdfed ships, and what its own node-config lists under ``allow``::

    flower-supernode ... --node-config 'allow="my_models.small:net my_models.large:net"'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from flwr.app import ConfigRecord, Context, Message, RecordDict
from pydantic import TypeAdapter, ValidationError

from clients.actors import is_simulated
from kdfed import wire
from kdfed.config import DataSettings, LocalSettings, ModelSettings, MutualLocal, TeacherSettings
from kdfed.config.checks import several
from kdfed.data import SOURCES
from kdfed.errors import ParticipantError, one_line
from kdfed.models import BUILDERS

ALLOW = "allow"
"""Node-config key: the ``package.module:name``s that a device builds when a message names them, separated by
spaces or commas."""

_LOCAL: TypeAdapter[LocalSettings] = TypeAdapter(LocalSettings)
_TORCHVISION = re.compile(r"torchvision:[A-Za-z0-9_]+")


def gate(message: Message, context: Context, handle: Callable[[Message, Context], Message]) -> Message:
    """Check a message's names before any handler sees it: a Flower mod around every handler."""
    check_names(message.content, context)
    return handle(message, context)


def check_names(content: RecordDict, context: Context) -> None:
    """Refuse a message that names code which neither kdfed ships nor this device allows.

    Raises
    ------
    ParticipantError
        If this process is no simulation's and a model or data source is neither. The name is told.
    """
    if is_simulated(context):
        return
    allowed = set(str(context.node_config.get(ALLOW, "")).replace(",", " ").split())
    for what, name, shipped in _names(content):
        if not shipped and name not in allowed:
            raise ParticipantError(
                f"expected a {what} that kdfed ships, or one that this device's node-config lists under "
                f"{ALLOW!r}, got {one_line(repr(name), 80)}; a message decides about no other code"
            )


def _names(content: RecordDict) -> Iterator[tuple[str, str, bool]]:
    """Yield every name in a message that code would be looked up for: what, name, whether kdfed ships it."""
    try:
        for record in content.config_records.values():
            for model in _models(record):
                yield "model", model.name, is_shipped_model(model.name)
        simulation = content.config_records.get(wire.SIMULATION, ConfigRecord())
        if "data" in simulation:
            source = DataSettings.model_validate_json(str(simulation["data"])).source
            yield "data source", source, is_shipped_source(source)
    except ValidationError as error:
        raise ParticipantError(f"expected settings of kdfed in a message: {one_line(error)}") from error


def _models(record: ConfigRecord) -> Iterator[ModelSettings]:
    if "model" in record:
        yield ModelSettings.model_validate_json(str(record["model"]))
    if "local" in record:
        local = _LOCAL.validate_json(str(record["local"]))
        if isinstance(local, MutualLocal):
            yield from several(local.model)
    if "teachers" in record:
        yield from several(TeacherSettings.model_validate_json(str(record["teachers"])).model)


def is_shipped_model(name: str) -> bool:
    """Tell whether a model's name is kdfed's or torchvision's, never ``package.module:name``."""
    return name in BUILDERS or _TORCHVISION.fullmatch(name) is not None


def is_shipped_source(name: str) -> bool:
    """Tell whether a data source is one of kdfed's, never ``package.module:name``."""
    prefix, colon, _ = name.partition(":")
    return f"{prefix}{colon}" in SOURCES
