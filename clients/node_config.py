"""What a device's own node-config says: who it is, where its data are, and what it runs.

A SuperNode is started with it, and no message can change it::

    flower-supernode ... --node-config 'participant="north" data="folder:/data/images"'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from kdfed.errors import ParticipantError
from kdfed.settings import NAME_OF_PARTICIPANT, PositiveInt, Settings, Text
from kdfed.settings_file import mistakes_of


class NodeConfig(Settings):
    """A device's node-config."""

    participant: Text
    """The participant's name. It survives a new node id: letters, digits, dots, dashes and underscores, at
    most 63, the first a letter or a digit."""
    data: Text
    """Where its examples are: ``folder:PATH``, ``parquet:PATH``, ``csv:PATH``, ``npz:PATH``, or a
    ``package.module:name`` that is installed on the device."""
    device: Text = "auto"
    """Where it trains: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    threads: PositiveInt = 1
    """Threads of one operation. Another number gives other bits than the simulation's."""
    store: Text | None = None
    """A folder for what it keeps between rounds; experiments that keep something need one."""
    teacher: Text | None = None
    """A file with a teacher that it has already, which is sent in place of a new one."""
    allow: Annotated[Text, Field(pattern=r"^[\w.:, -]*$")] = ""
    """The ``package.module:name``s it builds when a message names them, separated by spaces or commas."""

    @field_validator("participant")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if NAME_OF_PARTICIPANT.fullmatch(value) is None:
            raise ValueError(
                "expected letters, digits, dots, dashes and underscores, at most 63, the first a letter or a "
                "digit"
            )
        return value

    @property
    def allowed(self) -> frozenset[str]:
        """The names under ``allow``."""
        return frozenset(self.allow.replace(",", " ").split())


def node_config_of(values: Mapping[str, Any]) -> NodeConfig:
    """Read a device's node-config.

    Raises
    ------
    ParticipantError
        If keys are missing, wrong or unknown: all of them are told.
    """
    try:
        return NodeConfig.model_validate(dict(values))
    except ValidationError as error:
        told = (f"node-config {one.key!r}: {one.message}" for one in mistakes_of(error, NodeConfig))
        raise ParticipantError("; ".join(told)) from error
