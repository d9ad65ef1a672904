"""Names, numbers and nodes of devices: who is admitted, who is refused, and who comes late."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from kdfed.device_data import DeviceData
from kdfed.errors import RecordError, RunError
from kdfed.ledger import Ledger
from kdfed.messages import CONFIG, DEVICE_DATA, DeviceHelloReply, versions_of_device
from kdfed.private.flwr import error_reply, identify, name_message
from kdfed.reasons import Once
from strategies import roster as module
from strategies.inbox import bytes_of
from strategies.roster import Devices, Greeting, Roster, Rules
from tests.strategies.test_hello import Clock

WANTED = DeviceData(
    classes=("a", "b"), shape=(4,), mean=(0.0,) * 4, std=(1.0,) * 4, run="x/y-1/0123456789abcdef"
)


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def says(name: str, examples: int = 9, shape: tuple[int, ...] = (4,), **running: str) -> RecordDict:
    versions = {**versions_of_device(), **running}
    return DeviceHelloReply(name, examples, shape, versions, "cpu, here", 2**30).to_record()


class Network:
    """Nodes by id, and what each answers: a content, the text of an error, or nothing yet."""

    def __init__(self, says: dict[int, RecordDict | str | None]) -> None:
        self.says = dict(says)
        self.sent: list[Message] = []
        self._open: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.says)

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        for message in messages:
            name_message(message, f"m{len(self.sent)}")
            self.sent.append(message)
            self._open[message.metadata.message_id] = message
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids: Sequence[str]) -> list[Message]:
        replies = []
        for one in ids:
            message = self._open[one]
            said = self.says.get(message.metadata.dst_node_id)
            if said is not None:
                del self._open[one]
                is_error = isinstance(said, str)
                replies.append(error_reply(message, said) if is_error else Message(said, reply_to=message))
        return replies[::-1]  # in no order of theirs


def greeting(
    network: Network,
    path: Path | None = None,
    participants: int = 3,
    quorum: int | None = None,
    ledger: Ledger | None = None,
    roster: Roster | None = None,
    grace: float = 5.0,
) -> Greeting:
    rules = Rules(participants, participants if quorum is None else quorum, grace, least=2, most=100)
    return Greeting(
        Devices(WANTED, roster or Roster(path)),
        rules,
        cast(Grid, network),
        60.0,
        ledger or Ledger(),
        Once(logging.getLogger("kdfed.strategies")),
    )


def test_names_are_numbered_in_their_order_whatever_their_nodes(tmp_path):
    network = Network({7: says("south", 30), 9: says("east", 10), 3: says("north", 20)})
    present = greeting(network, tmp_path / "roster.json").wait()
    assert present.roster == {0: 9, 1: 3, 2: 7}
    assert present.held is not None
    assert present.held.tolist() == [10, 20, 30]
    written = json.loads((tmp_path / "roster.json").read_text())
    assert (written["schema"], written["refused"]) == (1, [])
    assert written["participants"][0] == {
        "name": "east",
        "number": 0,
        "node": "9",
        "examples": 10,
        "versions": versions_of_device(),
        "device": "cpu, here",
        "memory": 2**30,
    }
    assert [entry["name"] for entry in written["participants"]] == ["east", "north", "south"]


def test_every_hello_says_what_a_device_must_make_of_its_data_and_is_counted():
    network, ledger = Network({1: says("a"), 2: says("b")}), Ledger()
    greeting(network, participants=2, ledger=ledger).wait()
    for message in network.sent:
        assert DeviceData.model_validate_json(str(message.content[CONFIG][DEVICE_DATA])) == WANTED
    costs = ledger.by_phase()["hello"]
    assert costs.bytes_down == sum(bytes_of(message.content) for message in network.sent)
    assert costs.bytes_up == bytes_of(says("a")) + bytes_of(says("b"))
    assert (costs.exchanges, costs.participant_uploads) == (0, 0)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (says("bad", torch="1.13.0"), "expected versions like the server's, got torch 1.13.0, not"),
        (says("bad", kdfed="9.9"), "got kdfed 9.9, not"),
        (says("bad", flwr="1.2.0"), "got flwr 1.2.0, not"),
        (says("bad", shape=(5,)), r"expected inputs of the shape \[4\], got \[5\]"),
        (says("bad", examples=1), r"expected from 2 \(partition.min-examples\) to 100 examples"),
        (says("bad", examples=101), r"\(server.max-examples\), got 101"),
        ("its folder is gone", "error reply: its folder is gone"),
        (says("../bad"), "expected the name of a participant"),
        (RecordDict(), "expected 'participant' in a message, of type str, got None"),
        (RecordDict({CONFIG: ConfigRecord({"participant": "bad"})}), "expected 'num-examples'"),
    ],
)
def test_who_cannot_take_part_is_refused_by_name_and_costs_nobody_else(said, reason, tmp_path, caplog):
    network = Network({1: says("a"), 2: said, 3: says("b")})
    present = greeting(network, tmp_path / "roster.json", participants=2).wait()
    assert present.roster == {0: 1, 1: 3}
    (refused,) = json.loads((tmp_path / "roster.json").read_text())["refused"]
    assert refused["node"] == "2"
    named = isinstance(said, RecordDict) and len(said) == 2 and said[CONFIG]["participant"] == "bad"
    assert refused["name"] == ("bad" if named else None)
    import re

    assert re.search(reason, refused["reason"])
    (line,) = caplog.messages
    assert line.startswith(
        "hello: without participant bad" if named else "hello: without the device at node 2"
    )


def test_another_torch_of_the_same_generation_is_told_and_admitted(caplog):
    major = versions_of_device()["torch"].partition(".")[0]
    present = greeting(Network({1: says("a", torch=f"{major}.0.1+cpu")}), participants=1).wait()
    assert present.roster == {0: 1}
    (line,) = caplog.messages
    assert "participant a: its torch is" in line


def test_of_two_devices_of_one_name_the_first_takes_part(tmp_path, clock):
    """The second is refused by name; where the first goes, it takes its place and its number."""
    network = Network({1: says("a", 10), 2: says("a", 20), 3: says("b", 30)})
    one = greeting(network, tmp_path / "roster.json", participants=2)
    present = one.wait()
    assert present.roster == {0: 1, 1: 3}
    (refused,) = json.loads((tmp_path / "roster.json").read_text())["refused"]
    assert (refused["name"], refused["node"]) == ("a", "2")
    assert "'a' is node 1 already" in refused["reason"]
    one.update()
    assert present.roster == {0: 1, 1: 3}
    del network.says[1]
    one.update()
    assert present.roster == {0: 2, 1: 3}
    assert present.held is not None
    assert present.held.tolist() == [20, 30]
    assert json.loads((tmp_path / "roster.json").read_text())["refused"] == []


def test_one_more_than_there_are_slots_is_refused():
    network = Network({1: says("a"), 2: says("b")})
    one = greeting(network, participants=2)
    present = one.wait()
    network.says[3] = says("c")
    one.update()
    assert present.roster == {0: 1, 1: 2}
    assert (
        "expected the 2 devices of partition.participants, which are a, b"
        in one._devices.roster.refused[3][1]
    )


def test_without_everybody_a_run_does_not_start_and_says_who_is_missing(clock):
    network = Network({1: says("a"), 2: says("b", examples=1), 3: None})
    with pytest.raises(
        RunError,
        match=r"expected all 3 devices \(partition.participants\) within 60 seconds .* got 1: a. "
        r"Refused: b at node 2: expected from 2 .* Have not answered hello: 1 nodes",
    ):
        greeting(network).wait()
    assert clock.now == pytest.approx(60, abs=1)


def test_a_quorum_starts_after_its_grace_and_who_comes_later_joins(clock):
    """Slots of those that have not come are empty, with a reason; a late name gets the next number."""
    network = Network({1: says("north"), 2: says("south")})
    one = greeting(network, quorum=2)
    present = one.wait()
    assert clock.now == pytest.approx(5, abs=0.5)
    assert present.roster == {0: 1, 1: 2}
    assert present.why_absent(2) == "no device of this number has come yet"
    network.says[5] = None
    present.update()
    assert present.roster == {0: 1, 1: 2}, "it has not answered"
    network.says[5] = says("east", 40)
    before = clock.now
    present.update()
    assert present.roster == {0: 1, 1: 2, 2: 5}
    assert present.held is not None
    assert present.held.tolist() == [9, 9, 40]
    assert clock.now == before, "nobody was waited for"


def test_everybody_there_needs_no_grace(clock):
    greeting(Network({1: says("a"), 2: says("b"), 3: says("c")}), quorum=2).wait()
    assert clock.now == 0


def test_a_restart_keeps_numbers_whoever_comes_first(tmp_path):
    path = tmp_path / "roster.json"
    greeting(Network({1: says("b"), 2: says("c")}), path, quorum=2).wait()
    later = greeting(Network({8: says("a"), 9: says("c"), 7: says("b")}), path)
    assert later.wait().roster == {0: 7, 1: 9, 2: 8}
    known = greeting(Network({9: says("c"), 8: says("a")}), path, quorum=2)
    present = known.wait()
    assert present.roster == {1: 9, 2: 8}
    assert present.why_absent(0) == "b has not come yet"


def test_a_device_that_comes_back_with_a_new_node_keeps_its_number():
    network = Network({1: says("a"), 2: says("b")})
    one = greeting(network, participants=2)
    present = one.wait()
    del network.says[1]
    network.says[44] = says("a", 33)
    one.update()
    assert present.roster == {0: 44, 1: 2}
    assert present.held is not None
    assert present.held.tolist() == [33, 9]


def test_a_device_that_has_left_is_in_no_roster_until_it_has_answered_again():
    network, ledger = Network({1: says("a"), 2: says("b")}), Ledger()
    one = greeting(network, participants=2, ledger=ledger)
    present = one.wait()
    greeted = ledger.by_phase()["hello"].bytes_down
    del network.says[1]
    present.update()
    assert present.roster == {1: 2}
    assert present.why_absent(0) == "a has left: its node 1 is offline"
    assert ledger.by_phase()["hello"].bytes_down == greeted
    network.says[1] = None
    present.update()
    assert present.roster == {1: 2}, "it has not answered"
    network.says[1] = says("a")
    present.update()
    assert present.roster == {0: 1, 1: 2}
    assert len(network.sent) == 3, "it was greeted once more"


def test_a_device_that_left_before_the_start_does_not_start_a_run(clock):
    """It has answered, and is gone when the second one comes."""
    network = Network({1: says("a")})
    one = greeting(network, participants=2)
    one._look()
    del network.says[1]
    network.says[2] = says("b")
    with pytest.raises(RunError, match=r"got 1: b\."):
        one.wait()


def test_a_device_that_was_refused_is_asked_again_once_it_reconnects():
    network = Network({1: says("a"), 2: "no such folder"})
    one = greeting(network, participants=2, quorum=1)
    present = one.wait()
    del network.says[2]
    one.update()
    network.says[2] = says("b")
    one.update()
    assert present.roster == {0: 1, 1: 2}
    assert one._devices.roster.refused == {}


def test_a_device_that_was_refused_and_comes_back_with_another_node_is_refused_no_more():
    network = Network({1: says("a"), 2: says("b", examples=1)})
    one = greeting(network, participants=2, quorum=1)
    present = one.wait()
    assert [name for name, _ in one._devices.roster.refused.values()] == ["b"]
    del network.says[2]
    network.says[30] = says("b")
    one.update()
    assert present.roster == {0: 1, 1: 30}
    assert one._devices.roster.refused == {}


def test_why_a_known_name_is_absent_is_told(tmp_path):
    path = tmp_path / "roster.json"
    greeting(Network({1: says("a"), 2: says("b")}), path, participants=2).wait()
    one = greeting(Network({1: says("a"), 2: says("b", shape=(9,))}), path, participants=2, quorum=1)
    present = one.wait()
    assert present.roster == {0: 1}
    assert present.why_absent(1).startswith("b is refused: expected inputs of the shape [4], got [9]")


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"schema": 2, "participants": []}', '{"schema": 1, "participants": [{"name": "a"}]}',
     '{"schema": 1, "participants": [{"name": "a", "number": 3, "node": "1"}]}'],
)  # fmt: skip
def test_a_roster_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "roster.json").write_text(content)
    with pytest.raises(RecordError, match="expected the roster of an earlier start"):
        Roster(tmp_path / "roster.json")


def test_long_texts_of_a_device_are_cut() -> None:
    reply = says("a")
    config: dict[str, Any] = dict(reply[CONFIG])
    config |= {"device": "x" * 10_000, "versions": json.dumps({"torch": "y" * 10_000, "z" * 500: "1"})}
    reply[CONFIG] = ConfigRecord(config)
    told = DeviceHelloReply.from_record(reply)
    assert len(told.device) <= 100
    assert all(len(key) <= 40 and len(value) <= 40 for key, value in told.versions.items())


@pytest.mark.parametrize(
    "participants",
    [
        '[{"name": "a", "number": 0, "node": "1"}, {"name": "a", "number": 1, "node": "2"}]',
        '[{"name": "../a", "number": 0, "node": "1"}]',
        '[{"name": "a", "number": 0.0, "node": "1"}]',
        '[{"name": "a", "number": 1e999, "node": "1"}]',
        "[" * 5000,
    ],
)
def test_a_roster_that_somebody_changed_is_refused(tmp_path, participants):
    path = tmp_path / "roster.json"
    path.write_text(f'{{"schema": 1, "participants": {participants}}}')
    with pytest.raises(RecordError, match="remove the file"):
        Roster(path)


def test_a_roster_of_more_devices_than_take_part_is_refused(tmp_path):
    rows = [{"name": name, "number": number, "node": "1"} for number, name in enumerate("abc")]
    (tmp_path / "roster.json").write_text(json.dumps({"schema": 1, "participants": rows}))
    with pytest.raises(RecordError, match=r"at most the 2 devices .* got 3"):
        greeting(Network({}), tmp_path / "roster.json", participants=2)
