"""Tiny matrices, of runs that take under a second and of worked curves that take none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kdfed.config import merge
from kdfed.records import Outcome, RoundRecord, summarise
from simulations.experiments import build_experiment
from simulations.matrix import load_matrix
from simulations.matrix.jobs import CellState, Job, join
from simulations.matrix.records import HeadlineRecord, RecordedCell, RecordedMatrix, read_matrix, write_matrix
from simulations.matrix.settings import Matrix

TINY: dict[str, Any] = {
    "name": "tiny",
    "base": {
        "seeds": [1, 2],
        "device": "cpu",
        "data": {"source": "digits", "limit": 400},
        "partition": {"kind": "dirichlet", "alpha": 0.5, "participants": 4, "min-examples": 4},
        "model": {"name": "mlp", "options": {"hidden": [8]}},
        "local": {"epochs": 1, "batch-size": 8, "lr": 0.1},
        "teachers": {"epochs": 1, "batch-size": 8, "lr": 0.1},
        "consolidation": {"epochs": 2, "batch-size": 16, "lr": 0.1},
        "server": {"strategy": "fedavg", "cohort-size": 4},
        "rounds": {"horizon": 3},
        "targets": ["90%-of-converged"],
        "arms": {"cold": {"start": "random"}, "warm": {"start": "consolidated"}},
    },
    "frames": {"small": {}},
    "cells": {
        "skewed": {"frame": "small"},
        "even": {"partition": {"kind": "uniform"}, "seeds": [1]},
    },
    "headline": {"arm": "warm", "baseline": "cold"},
}


def written(folder: Path, **changes: Any) -> Path:
    """Write the tiny matrix with some keys replaced (two underscores are a dot)."""
    file = folder / "tiny.yaml"
    values = merge(TINY, {key.replace("__", "."): value for key, value in changes.items()})
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def run_of(arm: str, seed: int, hit: int | None, horizon: int, teachers: int = 0) -> list[RoundRecord]:
    """Return a curve that is at 0.9 from a round on, else at 0.1; each exchange costs 10, 100, 200 and 5."""
    return [
        RoundRecord(
            *(arm, seed, r, r + teachers, "rounds" if r else "start"),
            *(accuracy := 0.1 if hit is None or r < hit else 0.9, accuracy - 0.1, 1.0),
            *((r + teachers) * cost for cost in (10, 100, 200, 5)),
            *(10, (), float(r), accuracy),
        )
        for r in range(horizon + 1)
    ]


def recorded(
    folder: Path, hits: Mapping[str, Mapping[str, Sequence[int | None]]], **changes: Any
) -> tuple[Matrix, Path]:
    """Leave a matrix folder of worked curves.

    Parameters
    ----------
    folder
        Where.
    hits
        By cell and arm, the round of the hit of each seed from 0 on; arms other than cold and solved had
        teachers.
    changes
        Of the tiny matrix.
    """
    own = dict(changes.pop("cells", {}))
    horizon = 20
    names = {
        name: {
            "seeds": list(range(len(arms["cold"]))),
            "arms": {arm: {"start": "random" if arm in ("cold", "solved") else "averaged"} for arm in arms},
            **own.get(name, {}),
        }
        for name, arms in hits.items()
    }
    base = {**TINY["base"], "rounds": {"horizon": horizon}, "targets": [0.8]}
    base = {key: value for key, value in base.items() if key != "arms"}
    values = {**TINY, "base": base, "cells": names, **changes}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    matrix, out, states = load_matrix(file), folder / "out", dict[str, CellState]()
    for cell in matrix.cells:
        jobs = {}
        for place, seed in enumerate(cell.experiment.seeds):
            records, outcomes = list[RoundRecord](), list[Outcome]()
            for arm in cell.experiment.arm_order:
                hit, taught = hits[cell.name][arm][place], int(arm not in ("cold", "solved"))
                records += run_of(arm, seed, hit, horizon, taught)
                versions = {"kdfed": "1", "torch": "2"}
                outcomes.append(Outcome(arm, seed, "horizon", "0" * 64, None, horizon + 1, versions))
            jobs[seed] = Job(cell, seed, "done", tuple(records), tuple(outcomes))
        state = CellState(cell, jobs)
        join(out, state, "inprocess")
        states[cell.name] = replace(state, is_joined=True)
    write_matrix(out, matrix, states)
    return matrix, out


def read(
    folder: Path, hits: Mapping[str, Mapping[str, Sequence[int | None]]], **changes: Any
) -> RecordedMatrix:
    """Return a matrix of worked curves as it is read; see :func:`recorded`."""
    return read_matrix(recorded(folder, hits, **changes)[1])


def shown(
    hits: Mapping[str, Mapping[str, Sequence[int | None]]],
    headline: Mapping[str, Any],
    held_out: Sequence[str] = (),
    frames: Mapping[str, str] | None = None,
) -> RecordedMatrix:
    """Return a matrix of worked curves as it is read from :func:`recorded`, without a folder.

    Parameters
    ----------
    hits
        As there.
    headline, held_out
        As in a matrix file.
    frames
        By cell.
    """
    cells = []
    for name, arms in hits.items():
        seeds = range(len(arms["cold"]))
        keys = {arm: {"start": "random" if arm in ("cold", "solved") else "averaged"} for arm in arms}
        base = {key: value for key, value in TINY["base"].items() if key != "arms"}
        values = {
            "name": name,
            "seeds": list(seeds),
            "rounds": {"horizon": 20},
            "targets": [0.8],
            "arms": keys,
        }
        experiment = build_experiment({**base, **values})
        records = [
            record
            for arm in experiment.arm_order
            for seed in seeds
            for record in run_of(arm, seed, arms[arm][seed], 20, int(arm not in ("cold", "solved")))
        ]
        outcomes = [Outcome(arm, seed, "horizon", "0" * 64) for arm in experiment.arm_order for seed in seeds]
        summary = summarise(experiment, "inprocess", records, outcomes)
        frame = (frames or {}).get(name, "")
        cells.append(RecordedCell(name, frame, name in held_out, experiment, records, summary))
    head = HeadlineRecord(**{"beside": None, "aims": {}, **headline})
    return RecordedMatrix("tiny", head, {"kdfed": "1"}, [], cells)
