"""Who is connected to a SuperLink: what Flower says of nodes, beside what participants told of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from simulations.deploy.flower import Node
from simulations.deploy.roster import Entry


class Row(NamedTuple):
    """A participant, or a node of which nobody knows whose it is (its name is empty)."""

    entry: Entry
    node_id: str
    status: str
    """As Flower says it; for a participant without a node ``not registered``, or ``unknown``."""
    seen: str


def rows(
    nodes: Iterable[Node],
    names: Sequence[str],
    registered: Mapping[str, str] | None,
    roster: Iterable[Entry],
) -> list[Row]:
    """Return a row for every participant and node.

    Parameters
    ----------
    nodes
        What Flower lists.
    names
        The deployment's participants.
    registered
        Their node ids, as far as they are known; None where nobody registers.
    roster
        What a run knows. A node id in it is newer than one in ``registered``.
    """
    entries = {entry.name: entry for entry in roster}
    absent = "unknown" if registered is None else "not registered"
    ids = {**(registered or {}), **{name: entry.node_id for name, entry in entries.items() if entry.node_id}}
    listed = {node.node_id: node for node in nodes}
    found = []
    for name in dict.fromkeys((*names, *entries)):
        node = listed.pop(ids.get(name, ""), None)
        entry = entries.get(name, Entry(name))
        if node is None:
            found.append(Row(entry, ids.get(name, ""), absent, ""))
        else:
            found.append(Row(entry, node.node_id, node.status, node.seen))
    rest = [node for node in listed.values() if node.status != "unregistered"]
    return found + [Row(Entry(""), node.node_id, node.status, node.seen) for node in rest]


def status_table(found: Sequence[Row]) -> Table:
    """Return the rows as a table; columns of which nothing is known are left out."""
    columns = {
        "participant": [row.entry.name or "(unknown)" for row in found],
        "node": [row.status for row in found],
        "last seen": [row.seen for row in found],
        "run": [row.entry.status for row in found],
        "examples": [row.entry.examples for row in found],
        "device": [row.entry.device for row in found],
        "memory": [row.entry.memory for row in found],
        "kdfed / flwr / torch": [row.entry.versions for row in found],
        "node id": [row.node_id for row in found],
    }
    told = {title: cells for title, cells in columns.items() if any(cells)}
    table = Table(box=None)
    for title in told:
        table.add_column(title, no_wrap=title in ("participant", "node"))
    for cells in zip(*told.values(), strict=True):
        table.add_row(*(escape(cell) for cell in cells))
    return table


def status_line(found: Sequence[Row]) -> str:
    """Return how many are there, in a sentence."""
    online = sum(row.status == "online" for row in found if row.entry.name)
    known = sum(bool(row.entry.name) for row in found)
    strangers = len(found) - known
    rest = (
        f"; {strangers} node{'s' if strangers > 1 else ''} of which nobody knows whose" if strangers else ""
    )
    return f"{online} of {known} participants online{rest}"
