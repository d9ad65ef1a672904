"""An experiment on devices, each with data of its own, beside a simulation of the same participants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdfed.messages import DEVICE_DATA, NUMBER
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
    hashes = {outcome.arm: outcome.weights_sha256 for outcome in folder.read_outcomes().values()}
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
        sizes = [{key: row.pop(key) for key in ("bytes_up", "bytes_down")} for row in (mine, theirs)]
        assert mine == theirs
        assert sizes[0]["bytes_up"] > sizes[1]["bytes_up"]
        assert sizes[0]["bytes_down"] > sizes[1]["bytes_down"]
