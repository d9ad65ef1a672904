"""Many participants in the experiment cost only those that are sampled."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

from clients.client_app import app
from kdfed.data.synthetic import Drawn
from kdfed.records import RunFolder
from simulations.engines.inprocess import InProcessGrid
from simulations.server_app import run_experiment

HELD_OUT = {"test": 0.0005, "validation": 0.0005, "transfer": 0.0005}


def _many(tiny: Any, participants: int) -> Any:
    """Two examples each, of which a few are held out: the partition needs one."""
    return tiny(
        **{
            "data": {
                "source": f"synthetic:examples={2 * participants},classes=10,shape=1x8x8",
                "splits": HELD_OUT,
            },
            "partition": {"kind": "uniform", "participants": participants},
            "server.sampled": 20,
            "server.cohort-size": 8,
            "rounds.max": 2,
            "targets": [0.99],
            "arms": {"cold": {"start": "random"}},
        }
    )


def test_a_hundred_thousand_participants_cost_only_the_twenty_that_are_sampled(tiny, tmp_path, monkeypatch):
    rows: list[int] = []
    honest = Drawn.__getitem__

    def counted(self: Drawn, index: Any) -> Any:
        drawn = honest(self, index)
        rows.append(len(drawn))
        return drawn

    monkeypatch.setattr(Drawn, "__getitem__", counted)
    experiment = _many(tiny, 100_000)
    tracemalloc.start()
    started = time.process_time()
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    summary = run_experiment(InProcessGrid(app, 2), experiment, folder, "inprocess")
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (run,) = summary["runs"]
    assert run["totals"]["participant_uploads"] == 40
    assert run["totals"]["round"] == 2
    held_out = 3 * round(200_000 * HELD_OUT["test"]) + round(200_000 * HELD_OUT["transfer"])
    assert sum(rows) <= held_out + 2 * 20 * 2
    assert seconds < 20
    assert peak < 60e6, "all inputs alone would be 200,000 x 64 bytes stored, and four times that as floats"
    (partition,) = summary["partitions"]
    assert partition["participants"] == 100_000
    assert len(partition["counts"]) == 100
    line = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1]
    assert len(line) < 1000
