"""Same experiment, same seed, same result: bit for bit on both engines and for any number of nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdfed.events import Event
from kdfed.records import RunFolder
from simulations.engines import flower, inprocess


def _records(engine: Any, experiment: Any, out: Path, nodes: int) -> tuple[Any, ...]:
    """Return rounds, weights, and the versions of whatever process wrote them."""
    events: list[Event] = []
    folder = RunFolder.open_for(out, experiment)
    engine.run(experiment, folder, nodes=nodes, on_event=events.append)
    assert events[-1].phase == "done"
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    summary = folder.read_summary()
    return rows, [run["weights_sha256"] for run in summary["runs"]], summary["versions"]


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_flowers_runtime_gives_the_bits_of_the_in_process_engine(tiny, tmp_path, nodes):
    experiment = tiny(
        **{"rounds.horizon": 2, "model": {"name": "cnn", "options": {"width": 4, "norm": "batch"}}}
    )
    reference = _records(inprocess, experiment, tmp_path / "inprocess", 1)
    assert _records(flower, experiment, tmp_path / "flower", nodes) == reference


@pytest.mark.sim
@pytest.mark.slow
def test_personal_models_and_logits_give_the_same_bits_on_flowers_runtime(tiny, tmp_path):
    """Client mutual and DS-FL keep a model with each participant between rounds."""
    settings = {"epochs": 1, "lr": 0.1}
    arms = {
        "mutual": {"start": "random", "local": {"mode": "mutual", "epochs": 1, "batch-size": 8, "lr": 0.1}},
        "ds_fl": {"server": {"strategy": "ds_fl", "digest": settings, "distillation": settings}},
    }
    experiment = tiny(**{"rounds.horizon": 2, "arms": arms, "baseline": "mutual"})
    reference = _records(inprocess, experiment, tmp_path / "inprocess", 1)
    assert _records(flower, experiment, tmp_path / "flower", 2) == reference
