"""Many participants in the experiment cost only those that are sampled."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from clients.client_app import app
from kdfed.config import Experiment
from kdfed.data.sources.synthetic import Drawn
from kdfed.records import RunFolder
from simulations.engines.inprocess import InProcessGrid
from simulations.experiments import build_experiment
from simulations.server_app import run_experiment

HELD_OUT = {"test": 0.0005, "evaluation": 0.0005, "validation": 0.0005, "transfer": 0.0005}


def _many(participants: int) -> Experiment:
    """Two examples each, but for those that are held out."""
    return build_experiment(
        {
            "name": "many",
            "seeds": [3],
            "device": "cpu",
            "data": {
                "source": f"synthetic:examples={2 * participants},classes=10,shape=1x28x28",
                "splits": HELD_OUT,
            },
            "partition": {"kind": "uniform", "participants": participants},
            "model": {"name": "mlp", "options": {"hidden": [16]}},
            "server": {"sampled": 20, "cohort-size": 8},
            "rounds": {"horizon": 2},
            "targets": [0.99],
            "arms": {"cold": {"start": "random"}},
        }
    )


@pytest.mark.slow
def test_a_hundred_thousand_participants_cost_only_the_twenty_that_are_sampled(tmp_path, monkeypatch):
    rows: list[int] = []
    honest = Drawn.__getitem__

    def counted(self: Drawn, index: Any) -> Any:
        drawn = honest(self, index)
        rows.append(len(drawn))
        return drawn

    monkeypatch.setattr(Drawn, "__getitem__", counted)
    experiment = _many(100_000)
    tracemalloc.start()
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    summary = run_experiment(InProcessGrid(app, 2), experiment, folder, "inprocess")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    run = summary["runs"][0]  # one of each target
    assert run["totals"]["participant_uploads"] == 40
    assert run["totals"]["round"] == 2
    held_out = sum(
        round(200_000 * HELD_OUT[name]) for name in (*HELD_OUT, "transfer", "validation")
    )  # stored and normalised
    assert sum(rows) <= held_out + 2 * 20 * 2 + 17, "17 show that inputs differ"
    assert peak < 80e6, "the images would be 157 MB"
    (partition,) = summary["partitions"]
    assert partition["participants"] == 100_000
    assert len(partition["counts"]) == 100
    line = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1]
    assert len(line) < 1000
