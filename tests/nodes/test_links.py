"""What the ledger counts is what devices get and send: three of them behind links of different speeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.nodes.counted import FILE
from tests.nodes.federation import federation
from tests.nodes.links import Link, links
from tests.nodes.relay import Relay, Trip, relay
from tests.nodes.rooms import COLD, NAMES, Rooms
from tests.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.deploy, pytest.mark.timeout(600)]

RATES = ["4mbit", "2mbit", "1mbit"]


DELAY = 0.1
"""Seconds that the far device's bytes take, each way."""

FAR = NAMES[-1]


class Linked(NamedTuple):
    """Three devices behind links, of which one goes a long way."""

    rooms: Rooms
    ways: dict[str, Link]
    far: Relay


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    home = tmp_path_factory.mktemp("linked")
    with ExitStack() as stack:
        made = stack.enter_context(links(RATES))
        ways = dict(zip(NAMES, made, strict=True))
        whole = stack.enter_context(federation(home, free_port(), made[0].host))
        far = stack.enter_context(relay(f"{ways[FAR].host}:{free_port()}", whole.host, whole.port))
        rooms = Rooms(whole, home, "tests.nodes.counted:app")
        inside = {name: link.inside for name, link in ways.items()}
        rooms.start(*NAMES, inside=inside, superlinks={FAR: far.address})
        yield Linked(rooms, ways, far)


@pytest.fixture
def before(linked: Linked) -> dict[str, int]:
    """How many messages each device had before a test."""
    return {name: len(messages(linked.rooms.home / name / FILE)) for name in NAMES}


def test_the_ledger_has_the_bytes_that_devices_count(
    linked: Linked, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly; what Flower, HTTP and TCP add stands beside it, and is not part of it."""
    rooms, ways, _ = linked
    before = {name: link.traffic() for name, link in ways.items()}
    run = rooms.run(**{"rounds.horizon": 2})
    rows = run.ended()
    with capsys.disabled():
        print(f"\nseconds of rounds without delay: {[round(row['seconds'], 1) for row in rows]}")
    after = {name: link.traffic() for name, link in ways.items()}
    counted = {name: messages(rooms.home / name / FILE) for name in NAMES}
    types = ["query.hello", "train", "train", "query.hello", "train.teacher", "train", "train"]
    assert [[message["type"] for message in own] for own in counted.values()] == [types] * 3
    ends = [row for row in rows if row["round"] == 2]
    assert len(ends) == 2
    for place, way in enumerate(("down", "up")):
        ledger = sum(row[f"bytes_{way}"] for row in ends)
        assert ledger == sum(message[way] for own in counted.values() for message in own)
        travelled = sum(after[name][place] - before[name][place] for name in NAMES)
        assert travelled > ledger
        with capsys.disabled():
            print(f"\nbytes {way}: {ledger} in the ledger, {travelled} at the interfaces")


def test_a_device_far_away_answers_with_the_same_bytes_and_takes_its_round_trips(
    linked: Linked, before: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    rooms, _, far = linked
    far.delay = DELAY
    begins = len(far.trips)
    run = rooms.run(arms=COLD, **{"rounds.horizon": 2})
    rows = run.ended()
    far.delay = 0.0
    assert [(row["answered"], row["absent"]) for row in rows] == [(0, []), (3, []), (3, [])]
    counted = {name: messages(rooms.home / name / FILE)[before[name] :] for name in NAMES}
    for way in ("down", "up"):
        assert rows[-1][f"bytes_{way}"] == sum(one[way] for own in counted.values() for one in own)
    exchanges = list(trips_of_exchanges(far.trips[begins:]))
    assert len(exchanges) == 3, "hello, and two rounds"
    seconds = [row["seconds"] for row in rows]
    for number, trips in enumerate(exchanges[1:], 1):
        needed = in_turn(trips)
        assert needed > 10, "Flower fetches two of eleven objects at a time, and sends as many"
        assert all(trip.ended is not None and trip.ended - trip.began >= 2 * DELAY for trip in trips)
        took = seconds[number] - seconds[number - 1]
        assert took >= needed * 2 * DELAY
        with capsys.disabled():
            print(f"\nround {number}, {1000 * DELAY:.0f} ms each way: {took:.1f} s, {needed} trips in turn")


def trips_of_exchanges(trips: Sequence[Trip]) -> Iterator[list[Trip]]:
    """Yield what a device asked for from the message that it fetched to the last bytes of its answer."""
    asked = [trip for trip in trips if not trip.path.endswith(("heartbeat", "get-run", "get-fab"))]
    began = [place for place, trip in enumerate(asked) if trip.path.endswith("confirm-message-received")]
    for place in began:
        first = max(n for n in range(place) if asked[n].path.endswith("pull-messages"))
        after = (n for n in range(place, len(asked)) if asked[n].path.endswith("pull-messages"))
        yield asked[first : next(after, len(asked))]


def in_turn(trips: Sequence[Trip]) -> int:
    """Return how many trips there are of which each began when the one before had ended, at most."""
    count, free = 0, 0.0
    for trip in sorted(trips, key=lambda one: one.ended or math.inf):
        if trip.began >= free and trip.ended is not None:
            count, free = count + 1, trip.ended
    return count


def messages(file: Path) -> list[dict[str, Any]]:
    """Return what a device has written down of its messages, in order."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]
