"""Nodes, participants and what they told are put side by side."""

from __future__ import annotations

import io

from rich.console import Console

from simulations.deploy.flower import Node
from simulations.deploy.roster import Entry
from simulations.deploy.status import rows, status_line, status_table

NODES = [
    Node("11", "online", "now"),
    Node("22", "offline", "2026-05-01 10:00:00Z"),
    Node("33", "online", "now"),
    Node("44", "unregistered", ""),
]
ROSTER = [Entry("south", "22", "120", "0.1.0 / 1.42.0 / 2.9.0", "cpu", "4.0 GiB", "answers")]


def seen(found):
    return [(row.entry.name, row.node_id, row.status) for row in found]


def test_a_node_is_found_by_registration_or_by_the_roster():
    found = rows(NODES, ["north", "south", "west"], {"north": "11"}, ROSTER)
    assert seen(found) == [
        ("north", "11", "online"),
        ("south", "22", "offline"),
        ("west", "", "not registered"),
        ("", "33", "online"),
    ]
    assert status_line(found) == "1 of 3 participants online; 1 node of which nobody knows whose"


def test_a_newer_node_id_of_the_roster_counts():
    moved = [Entry("north", "33")]
    assert seen(rows(NODES, ["north"], {"north": "11"}, moved))[0] == ("north", "33", "online")


def test_a_participant_of_the_roster_alone_has_a_row():
    assert seen(rows([], [], {}, ROSTER)) == [("south", "22", "not registered")]


def test_where_nobody_registers_a_node_that_is_not_found_is_unknown():
    assert seen(rows([], ["north"], None, [])) == [("north", "", "unknown")]


def test_columns_of_which_nothing_is_known_are_left_out():
    found = rows(NODES, ["north", "south"], {"north": "11"}, [])
    assert [column.header for column in status_table(found).columns] == [
        "participant", "node", "last seen", "node id",
    ]  # fmt: skip
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(status_table(rows(NODES, ["south"], {}, ROSTER)))
    text = console.export_text()
    assert "120" in text
    assert "0.1.0 / 1.42.0 / 2.9.0" in text
    assert "4.0 GiB" in text
