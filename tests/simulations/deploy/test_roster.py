"""A run's roster is read whatever else is in it."""

from __future__ import annotations

import json

import pytest

from kdfed.errors import RunError
from kdfed.messages import DeviceHelloReply
from simulations.deploy.roster import Entry, read_roster
from strategies.roster import Roster


def written(tmp_path, values):
    (tmp_path / "roster.json").write_text(json.dumps(values))
    return read_roster(tmp_path)


def test_what_the_server_writes_is_read_with_whom_it_refused(tmp_path):
    """A node without a name is nobody's row, and a name that takes part is no refused one."""
    versions = {"kdfed": "0.1.0", "flwr": "1.42.0", "torch": "2.9.0"}
    roster = Roster(tmp_path / "roster.json")
    told = DeviceHelloReply("north", 120, (4,), versions, "cpu", 4 * 2**30)
    roster.admit({"north": (2**63 + 5, told)})
    for node, name, reason in ((33, "west", "another shape"), (44, "", "no name"), (55, "north", "twice")):
        roster.refuse(node, name, reason)
    roster.write()
    expected = [
        Entry("north", str(2**63 + 5), "120", "0.1.0 / 1.42.0 / 2.9.0", "cpu", "4.0 GiB"),
        Entry("west", "33", status="refused: another shape"),
    ]
    assert read_roster(tmp_path) == read_roster(tmp_path / "roster.json") == expected


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
    odd = {"name": "north", "versions": "1", "memory": "much", "examples": [1]}
    assert written(tmp_path, {"participants": [odd]}) == [Entry("north", examples="[1]")]


def test_what_a_device_told_cannot_command_a_terminal(tmp_path):
    (entry,) = written(tmp_path, {"participants": [{"name": "north\x1b[2J", "device": "x" * 1000}]})
    assert "\x1b" not in entry.name
    assert len(entry.device) < 150


@pytest.mark.parametrize("content", [None, "{", "\x00"])
def test_no_roster_is_one_error(tmp_path, content):
    if content is not None:
        (tmp_path / "roster.json").write_text(content)
    with pytest.raises(RunError, match="roster"):
        read_roster(tmp_path)
