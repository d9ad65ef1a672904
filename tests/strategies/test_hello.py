"""Who is there: nodes are asked, devices are numbered; the network is a list of replies."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from kdfed.errors import RunError
from kdfed.ledger import Costs, Ledger
from kdfed.messages import CONFIG, METRICS, SIMULATION, WARNINGS, HelloReply, Simulation, versions
from kdfed.private.flwr import error_reply, identify, name_message
from kdfed.reasons import Once
from strategies import hello
from strategies.hello import Present, ask_nodes, nodes_of, number_devices
from tests.setups import A_SIMULATION

HELD = np.array([4, 0, 7])


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


class Network:
    """Nodes that answer what they are told to; None for one that does not answer."""

    def __init__(self, *says: RecordDict | str | None, ids: Sequence[Sequence[int]] = ()) -> None:
        self.says, self.asked = says, list[Message]()
        self.timeout: float | None = None
        self._ids = iter(ids)
        self._last: Sequence[int] = range(10, 10 + len(says))

    def get_node_ids(self) -> list[int]:
        self._last = next(self._ids, self._last)
        return list(self._last)

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float) -> list[Message]:
        self.asked, self.timeout = list(messages), timeout
        replies = []
        for message, said in zip(messages, self.says, strict=True):
            name_message(message, str(message.metadata.dst_node_id))
            if isinstance(said, str):
                replies.append(error_reply(message, said))
            elif said is not None:
                replies.append(Message(said, reply_to=message))
        return replies


def said(held: Sequence[int] = (4, 0, 7), sha256: str = "ab", **running: str) -> RecordDict:
    return HelloReply({**versions(), **running}, np.array(held), sha256).to_record()


def asked(network: Network, participants: int = 3, most: int = 7, ledger: Ledger | None = None) -> Present:
    grid = cast(Grid, network)
    return ask_nodes(
        grid,
        A_SIMULATION,
        participants,
        most,
        5.0,
        ledger or Ledger(),
        Once(logging.getLogger("kdfed.strategies")),
    )


# ----------------------------------------------------------------------------- nodes of a simulation


def test_every_node_is_asked_and_what_all_hold_is_known():
    network = Network(said(), said())
    present = asked(network)
    assert present.held is not None
    assert (present.held.tolist(), present.roster) == ([4, 0, 7], None)
    assert [message.metadata.dst_node_id for message in network.asked] == [10, 11]
    assert {message.metadata.message_type for message in network.asked} == {"query.hello"}
    assert {message.metadata.ttl for message in network.asked} == {network.timeout} == {5.0}
    for message in network.asked:
        assert json.loads(message.content[CONFIG]["versions"]) == versions()
        assert Simulation.from_record(message.content) == A_SIMULATION


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_hello_of_each_participant_is_counted_whatever_the_number_of_nodes(nodes):
    """Down its versions; up its versions and its examples: what a device would send, and no exchange."""
    ledger, network = Ledger(), Network(*[said()] * nodes)
    asked(network, ledger=ledger)
    one = network.asked[0].content[CONFIG].count_bytes()
    assert SIMULATION in network.asked[0].content
    up = one + MetricRecord({"num-examples": 1}).count_bytes()
    assert ledger.by_phase() == {"hello": Costs(bytes_down=3 * one, bytes_up=3 * up)}


@pytest.mark.parametrize(
    "other",
    [said(sha256="cd"), said(held=(4, 7, 0)), said(held=(4, 1, 6))],
    ids=["hash", "order", "sizes"],
)
@pytest.mark.parametrize("place", [0, 2])
def test_nodes_that_hold_different_data_are_refused(other, place):
    says = [said(), said(), said()]
    says[place] = other
    with pytest.raises(RunError, match="expected every node to hold the same partition"):
        asked(Network(*says))


def test_a_node_of_other_versions_is_named():
    with pytest.raises(RunError, match=r'the server\'s versions .* got .*"torch": "0\.1".* from node 11'):
        asked(Network(said(), said(torch="0.1")))


def without(record: str, key: str) -> RecordDict:
    content = said()
    del content[record][key]
    return content


def changed(change: Callable[[RecordDict], object]) -> RecordDict:
    content = said()
    change(content)
    return content


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (said(held=(4, 7)), "expected 3 participants, got 2 from node 11"),
        (said(held=(4, 0, 8)), r"expected from 0 to 7 examples .*got 0 to 8 from node 11"),
        (without(METRICS, "held"), r"expected every node to tell the number .* from node 11"),
        (without(CONFIG, "versions"), r"expected every node to tell the number .* from node 11"),
        (RecordDict(), r"expected every node to tell the number .* from node 11"),
        (
            changed(lambda content: content[CONFIG].update(versions="none")),
            r'versions .* got {"versions": "none"} from node 11',
        ),
        (
            changed(lambda content: content[CONFIG].update(versions="[" * 100_000)),
            r"expected the server's versions .* from node 11",
        ),
    ],
)
def test_what_a_node_cannot_say_is_refused_with_its_number(says, message):
    with pytest.raises(RunError, match=message):
        asked(Network(said(), says))


def test_where_some_nodes_fail_the_others_are_enough(caplog):
    present = asked(Network("no memory", said(), None))
    assert present.held is not None
    assert present.held.tolist() == HELD.tolist()
    assert caplog.messages == ["hello: no memory"]


def test_where_all_fail_every_reason_is_told_once():
    with pytest.raises(RunError, match=r"expected an answer to hello from a node, got none: a; b$"):
        asked(Network("b", "a", "b\nTraceback (most recent call last):"))


def test_where_nobody_answers_the_time_is_told():
    with pytest.raises(RunError, match="got none: no reply within 5 seconds"):
        asked(Network(None, None))


def test_warnings_of_nodes_are_logged_once(caplog):
    def warning(*texts: str) -> RecordDict:
        return changed(lambda content: content.update({WARNINGS: ConfigRecord({"texts": list(texts)})}))

    asked(Network(warning("old data", "slow"), warning("slow"), said()))
    assert caplog.messages == ["a participant warns: old data", "a participant warns: slow"]


# ----------------------------------------------------------------------------- devices


class Clock:
    """A clock that only sleeping moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(hello, "time", found)
    return found


def network_of(*ids: Sequence[int]) -> Any:
    return Network(ids=ids)


def test_devices_are_numbered_by_their_nodes_ids_once_enough_are_there(clock):
    present = number_devices(network_of([9], [9, 4], [9, 4, 77, 5]), 3, timeout=60)
    assert (present.roster, present.held) == ({0: 4, 1: 5, 2: 9}, None)
    assert 0 < clock.now < 1


def test_a_device_that_is_offline_is_left_out_until_it_is_back(clock):
    present = number_devices(network_of([9, 4], [9], [4, 9]), 2, timeout=60)
    assert present.roster == {0: 4, 1: 9}
    present.update()
    assert present.roster == {1: 9}
    assert present.why_absent(0) == "its node 4 is offline"
    present.update()
    assert present.roster == {0: 4, 1: 9}


def test_devices_that_do_not_come_in_time_are_counted(clock):
    with pytest.raises(RunError, match=r"expected 3 nodes \(partition\.participants\), got 2 in time"):
        number_devices(network_of([9, 4]), 3, timeout=60)
    assert clock.now == pytest.approx(60, abs=1)


def test_nodes_are_sorted_and_the_first_is_waited_for(clock):
    assert nodes_of(network_of([], [], [8, 3])) == [3, 8]
    assert 0 < clock.now < 1
    with pytest.raises(RunError, match="expected at least one node within 60 seconds, got none"):
        nodes_of(network_of([]))
    assert clock.now == pytest.approx(60, abs=1)
