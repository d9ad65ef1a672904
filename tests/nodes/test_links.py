"""What the ledger counts is what devices get and send: three of them behind links of different speeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.counted import FILE
from tests.nodes.federation import federation
from tests.nodes.links import Link, links
from tests.nodes.rooms import NAMES, Rooms, free_port

pytestmark = [pytest.mark.slow, pytest.mark.deploy, pytest.mark.timeout(600)]

RATES = ["4mbit", "2mbit", "1mbit"]


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[tuple[Rooms, dict[str, Link]]]:
    with links(RATES) as made, federation(tmp_path, free_port(), made[0].host) as whole:
        rooms, ways = Rooms(whole, tmp_path, "tests.nodes.counted:app"), dict(zip(NAMES, made, strict=True))
        rooms.start(*NAMES, inside={name: link.inside for name, link in ways.items()})
        yield rooms, ways


def test_the_ledger_has_the_bytes_that_devices_count(
    linked: tuple[Rooms, dict[str, Link]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly; what Flower, HTTP and TCP add stands beside it, and is not part of it."""
    rooms, ways = linked
    before = {name: link.traffic() for name, link in ways.items()}
    run = rooms.run(**{"rounds.horizon": 2})
    rows = run.ended()
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


def messages(file: Path) -> list[dict[str, Any]]:
    """Return what a device has written down of its messages, in order."""
    return [json.loads(line) for line in file.read_text().splitlines()]
