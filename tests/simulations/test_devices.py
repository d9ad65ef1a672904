"""An experiment on devices, each with data of its own, beside a simulation of the same participants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from kdfed.messages import COHORTS, CONFIG, DEVICE_DATA, versions
from kdfed.records import RunFolder
from simulations.engines.inprocess import InProcessGrid
from simulations.server_app import run_experiment
from tests.devices import DeviceGrid, client_app, node_configs, on_devices, simulated


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.report.build_report", lambda folder: None)


def records(grid: Any, experiment: Any, out: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run, and return the lines of ``rounds.jsonl`` and each arm's hash of the weights."""
    folder = RunFolder.open_for(out, experiment)
    run_experiment(grid, experiment, folder, "flower")
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    hashes = {outcome.arm: outcome.weights_sha256 for outcome in folder.read_outcomes()}
    return rows, hashes


def test_devices_with_classes_of_their_own_give_the_bits_of_the_simulation(tmp_path: Path) -> None:
    """Three devices share no digit: a folder of images, arrays, a function; two arms.

    All fields but seconds and bytes are equal. Bytes differ by what a device must be told, and by what it
    tells at hello: both are counted here.
    """
    grid = DeviceGrid(node_configs(tmp_path / "data"))
    found, hashes = records(grid, on_devices(), tmp_path / "devices")
    wanted, wanted_hashes = records(InProcessGrid(client_app, 2), simulated(), tmp_path / "simulated")
    assert hashes == wanted_hashes
    assert len(set(hashes.values())) == 2
    assert len(found) == len(wanted) == 2 * 3
    for mine, theirs in zip(found, wanted, strict=True):
        for row in (mine, theirs):
            del row["seconds"]
        assert _without_bytes(mine) == _without_bytes(theirs)
    ends = (2, 5)
    down, up = (sum(found[end][key] for end in ends) for key in ("bytes_down", "bytes_up"))
    assert down == sum(_counted(seen.down) for seen in grid.seen)
    assert up == sum(_counted(seen.up) for seen in grid.seen if seen.up is not None)
    told = [seen for seen in grid.seen if seen.type != "query.hello"]
    assert len(told) == 3 * (2 + 1 + 2)
    hello = 2 * 3 * ConfigRecord({"versions": json.dumps(versions())}).count_bytes()
    plain = hello + sum(_counted(seen.down) - _told(seen.down) for seen in told)
    assert plain == sum(wanted[end]["bytes_down"] for end in ends)
    hello += 2 * 3 * MetricRecord({"num-examples": 1}).count_bytes()
    answers = sum(_counted(seen.up) for seen in told if seen.up is not None)
    assert hello + answers == sum(wanted[end]["bytes_up"] for end in ends)


def _without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("bytes_")}


def _counted(content: RecordDict) -> int:
    """Return the bytes of a message's records; who it is for and who answered count nothing."""
    return sum(record.count_bytes() for key, record in content.items() if key != COHORTS)


def _told(content: RecordDict) -> int:
    """Return the bytes of what a device is told beside what a strategy sends."""
    return ConfigRecord({DEVICE_DATA: content[CONFIG][DEVICE_DATA]}).count_bytes()
