"""The gate for names in messages: nothing is imported, allocated or built because a message says so.

In a simulation a message may name what its experiment names, which its ``simulation`` record lists:
participants and server are the same user's. A device looks up only what kdfed ships, and what its own
node-config lists under ``allow``::

    flower-supernode ... --node-config 'allow="my_models.small:net my_models.large:net"'
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from flwr.app import Context, Message, RecordDict

from clients.actors import is_simulated
from kdfed.closed_form import HEADS
from kdfed.consensus import DIGESTS
from kdfed.errors import ParticipantError, one_line
from kdfed.local import LOCAL_MODES
from kdfed.messages import Simulation
from kdfed.named import search_in
from kdfed.outside import outside_names
from kdfed.partitions import PARTITIONS
from kdfed.settings import DataSettings, ModelSettings, TeacherSettings

ALLOW = "allow"
"""Node-config key: the ``package.module:name``s that a device builds when a message names them, separated by
spaces or commas."""


def gate(message: Message, context: Context, handle: Callable[[Message, Context], Message]) -> Message:
    """Check a message's names before any handler sees it: a Flower mod around every handler."""
    check_names(message.content, context)
    return handle(message, context)


def check_names(content: RecordDict, context: Context) -> None:
    """Refuse a message that names code which neither kdfed ships nor this process allows.

    Raises
    ------
    ParticipantError
        If it names something else. The name is told.
    """
    where = f"one that this device's node-config lists under {ALLOW!r}"
    allowed = set(str(context.node_config.get(ALLOW, "")).replace(",", " ").split())
    if is_simulated(context):
        simulation = Simulation.from_record(content)
        where = "one that the experiment names"
        allowed = set() if simulation is None else set(simulation.names)
        if simulation is not None and simulation.folder is not None:
            search_in(simulation.folder)
    for what, name in _names(content):
        if name not in allowed:
            raise ParticipantError(
                f"expected a {what} that kdfed ships, or {where}, got {one_line(repr(name), 80)}; a message "
                "decides about no other code"
            )


def _names(content: RecordDict) -> Iterator[tuple[str, str]]:
    """Yield every name in a message that code of a user's would be looked up for: what, and the name.

    What stands inside of a thing comes after the thing itself, whose code says how to read it.
    """
    try:
        for record in content.config_records.values():
            for key, kind in (
                ("model", ModelSettings),
                ("teachers", TeacherSettings),
                ("data", DataSettings),
            ):
                if key in record:
                    yield from outside_names(kind.model_validate_json(str(record[key])))
            for key, family in (
                ("local", LOCAL_MODES),
                ("partition", PARTITIONS),
                ("head", HEADS),
                ("statistics", HEADS),
            ):
                if key in record:
                    name = str(json.loads(str(record[key])).get(family.tag, family.default))
                    if name not in family:
                        yield family.noun, name
                    yield from outside_names(family.parse(str(record[key])))
            if "strategy" in record and str(record["strategy"]) not in DIGESTS:
                yield "consensus", str(record["strategy"])
    except (ValueError, AttributeError, RecursionError) as error:
        raise ParticipantError(f"expected settings of kdfed in a message: {one_line(error)}") from error
