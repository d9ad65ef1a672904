"""A run's roster is read whatever else is in it."""

from __future__ import annotations

import json

import pytest

from kdfed.errors import RunError
from simulations.deploy.roster import Entry, read_roster

NORTH = {
    "name": "north",
    "number": 0,
    "node_id": 2**63 + 5,
    "examples": 120,
    "versions": {"kdfed": "0.1.0", "flwr": "1.42.0", "torch": "2.9.0"},
    "device": "cpu",
    "memory_bytes": 4 * 2**30,
    "status": "answers",
}


def written(tmp_path, values):
    (tmp_path / "roster.json").write_text(json.dumps(values))
    return read_roster(tmp_path)


def test_what_a_participant_told_is_read(tmp_path):
    expected = [Entry("north", str(2**63 + 5), "120", "0.1.0 / 1.42.0 / 2.9.0", "cpu", "4.0 GiB", "answers")]
    assert written(tmp_path, {"participants": [NORTH]}) == expected
    assert read_roster(tmp_path / "roster.json") == expected
    assert written(tmp_path, [NORTH]) == expected
    assert written(tmp_path, {"participants": {"north": {**NORTH, "name": "north"}}}) == expected


def test_the_servers_file_is_read_with_whom_it_refused(tmp_path):
    """Its keys are ``node`` and ``memory``; a node without a name is nobody's row."""
    told = {"name": "south", "number": 1, "node": "22", "memory": 2**31, "examples": 5}
    refused = [
        {"name": "west", "node": "33", "reason": "another shape"},
        {"name": None, "node": "44", "reason": "no name"},
        {"name": "south", "node": "55", "reason": "is there already"},
    ]
    assert written(tmp_path, {"schema": 1, "participants": [told], "refused": refused}) == [
        Entry("south", "22", "5", memory="2.0 GiB"),
        Entry("west", "33", status="refused: another shape"),
    ]


@pytest.mark.parametrize(
    "values",
    [None, 3, "x", [], {}, {"participants": None}, {"participants": [None, 3, [], {}, {"number": 1}]}],
)
def test_a_roster_without_participants_is_empty(tmp_path, values):
    assert written(tmp_path, values) == []


def test_what_is_missing_is_empty_and_what_is_unknown_left_out(tmp_path):
    assert written(tmp_path, {"later": 1, "participants": [{"name": "north", "colour": "red"}]}) == [
        Entry("north")
    ]
    odd = {"name": "north", "versions": "1", "memory_bytes": "much", "examples": [1]}
    assert written(tmp_path, [odd]) == [Entry("north", examples="[1]")]


def test_what_a_device_told_cannot_command_a_terminal(tmp_path):
    (entry,) = written(tmp_path, [{"name": "north\x1b[2J", "device": "x" * 1000}])
    assert "\x1b" not in entry.name
    assert len(entry.device) < 150


@pytest.mark.parametrize("content", [None, "{", "\x00"])
def test_no_roster_is_one_error(tmp_path, content):
    if content is not None:
        (tmp_path / "roster.json").write_text(content)
    with pytest.raises(RunError, match="roster"):
        read_roster(tmp_path)
