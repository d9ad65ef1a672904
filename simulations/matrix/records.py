"""``matrix.json``: every run of every complete cell, as flat records; written from the cells' run folders.

A field is a key, its docstring what the key means; ``docs/matrix.md`` says the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from kdfed.config import Arm, Experiment, sampled_count
from kdfed.errors import RunFolderError
from kdfed.pooled import is_open
from kdfed.records import RoundRecord, RunFolder, write_atomically
from kdfed.records.parsing import parse_json, problems_of, short
from kdfed.records.rounds import Count, Score
from kdfed.records.schema import StrictModel
from kdfed.server import ServerBase
from kdfed.settings import kebab
from simulations.matrix.jobs import CellState, cell_path, notes_of
from simulations.matrix.settings import Headline, Matrix

FILE = "matrix.json"
PACKAGES = ("kdfed", "torch", "numpy", "flwr")


class MatrixRecord(StrictModel):
    """How one arm and seed of one cell came to one target; costs are those of the hit."""

    model_config = ConfigDict(extra="forbid")

    frame: str
    """The cell's frame; empty where it has none."""
    cell: str
    """The cell's name."""
    dataset: str
    """``data.source``."""
    distribution: str
    """How examples are dealt, such as ``dirichlet(alpha=0.1)``."""
    participants: Count
    """How many there are."""
    sampled: Count
    """How many of them take part in a round."""
    server: str
    """The strategy, such as ``fedavgm(server-momentum=0.5)``."""
    arm: str
    """Which arm."""
    seed: Count
    """Which seed."""
    target: str
    """As written in the experiment."""
    held_out: bool
    """Whether nobody tuned on the cell."""
    rounds_to_target: Count | None
    """Null for a miss: the run went to the horizon without a hit."""
    exchanges_to_target: Count | None
    """Teachers counted; null for a miss."""
    participant_uploads: Count | None
    """Until the hit; null for a miss."""
    bytes: Count | None
    """Up and down until the hit; null for a miss."""
    local_steps: Count | None
    """Until the hit; null for a miss."""
    horizon: Count
    """How many rounds every arm of the cell runs."""
    converged_accuracy: Score | None
    """The mean of the last ten evaluations; null for a run that did not get to the horizon."""
    test_accuracy: Score | None
    """At the end of the run; reported only."""


class HeadlineRecord(StrictModel):
    """What the two sentences are about."""

    arm: str
    """The arm whose savings are read."""
    baseline: str
    """What it is compared with in the first sentence."""
    beside: str | None
    """And in the second; null where there is none."""
    aims: dict[str, float]
    """Percent of exchanges that are aimed at, by target."""


class MatrixRecords(StrictModel):
    """All of ``matrix.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    """1."""
    name: str
    """The matrix's."""
    versions: dict[str, str]
    """Of the packages that computed the runs, and of kdfed's code (a hash); several are listed."""
    headline: HeadlineRecord
    """What the two sentences are about."""
    unfinished: list[str]
    """Cells without records, because some of their jobs are not done."""
    cells: list[MatrixRecord]
    """One entry a cell, arm, seed and target. A run that failed has none: it is no miss."""

    @model_validator(mode="after")
    def _is_distinct(self) -> Self:
        seen: set[tuple[str, str, int, str]] = set()
        for number, one in enumerate(self.cells):
            key = (one.cell, one.arm, one.seed, one.target)
            if key in seen:
                raise ValueError(f"cells.{number}: expected one entry of {short(key)}, got a second one")
            seen.add(key)
        return self


@dataclass(frozen=True, eq=False)
class RecordedCell:
    """A complete cell as it is shown.

    Parameters
    ----------
    name, frame, held_out
        As in the matrix file.
    experiment, records, summary
        What its run folder holds.
    """

    name: str
    frame: str
    held_out: bool
    experiment: Experiment
    records: Sequence[RoundRecord]
    summary: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RecordedMatrix:
    """What a matrix folder holds, checked: ``matrix.json``, and the cells that it is counted from."""

    name: str
    headline: HeadlineRecord
    versions: Mapping[str, str]
    unfinished: Sequence[str]
    cells: Sequence[RecordedCell]


# ----------------------------------------------------------------------------- writing


def write_matrix(out: Path, matrix: Matrix, states: Mapping[str, CellState]) -> None:
    """Write ``matrix.json`` from the cells that are joined.

    Raises
    ------
    RunFolderError
        If it cannot be written, or a cell's folder cannot be read.
    """
    joined = [cell for cell in matrix.cells if states[cell.name].is_joined]
    records = [
        record
        for cell in joined
        for record in records_of(
            cell.name,
            cell.frame,
            cell.held_out,
            cell.experiment,
            RunFolder(cell_path(out, cell.name)).read_summary(),
        )
    ]
    outcomes = [one for cell in joined for job in states[cell.name].jobs.values() for one in job.outcomes]
    versions = {
        package: ", ".join(sorted({one.versions[package] for one in outcomes if package in one.versions}))
        for package in PACKAGES
    }
    noted, ran = notes_of(out), [f"{cell.name}/{seed}" for cell in joined for seed in cell.experiment.seeds]
    versions["code"] = ", ".join(sorted({noted[job].code if job in noted else "unknown" for job in ran}))
    content = MatrixRecords(
        name=matrix.name,
        versions=versions,
        headline=_headline(matrix.headline),
        unfinished=[cell.name for cell in matrix.cells if not states[cell.name].is_joined],
        cells=records,
    )
    text = json.dumps(content.model_dump(by_alias=True), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(out / FILE, f"{text}\n".encode())


def _headline(given: Headline) -> HeadlineRecord:
    return HeadlineRecord(arm=given.arm, baseline=given.baseline, beside=given.beside, aims=dict(given.aims))


def records_of(
    name: str, frame: str, held_out: bool, experiment: Experiment, summary: Mapping[str, Any]
) -> list[MatrixRecord]:
    """Return the flat records of a cell, in the order of its summary."""
    arms = {arm: experiment.arm(arm) for arm in experiment.arm_order}
    horizon = summary["horizon"]["rounds"]
    found = []
    for run in summary["runs"]:
        if is_open(run, horizon):
            continue
        arm, hit = arms[run["arm"]], run["hit"]
        found.append(
            MatrixRecord(
                frame=frame,
                cell=name,
                dataset=experiment.data.source,
                distribution=_titled(
                    arm.partition.model_dump(mode="json"), "kind", ("participants", "min-examples")
                ),
                participants=arm.partition.participants,
                sampled=sampled_count(arm),
                server=strategy_title(arm),
                arm=run["arm"],
                seed=run["seed"],
                target=run["target"],
                held_out=held_out,
                rounds_to_target=run["rounds_to_target"],
                exchanges_to_target=run["exchanges_to_target"],
                participant_uploads=None if hit is None else hit["participant_uploads"],
                bytes=None if hit is None else hit["bytes_up"] + hit["bytes_down"],
                local_steps=None if hit is None else hit["local_steps"],
                horizon=horizon,
                converged_accuracy=run["converged_accuracy"],
                test_accuracy=run["totals"]["test_accuracy"],
            )
        )
    return found


def strategy_title(arm: Arm) -> str:
    """Name a strategy with what is its own, such as ``fedavgm(server-momentum=0.5)``."""
    shared = {kebab(name) for name in ServerBase.model_fields}
    return _titled(arm.server.model_dump(mode="json"), "strategy", shared)


def _titled(values: Mapping[str, Any], tag: str, shared: Collection[str]) -> str:
    """Name a thing with its own keys, but for those that have no value.

    Its values are read as they are recorded, where no class stands behind them.
    """
    words = [f"{key}={value}" for key, value in values.items() if key != tag and key not in shared]
    words = [word for word in words if not word.endswith("=None")]
    return f"{values[tag]}({', '.join(words)})" if words else str(values[tag])


# ----------------------------------------------------------------------------- reading

_AGAIN = "run `kdfed matrix` again, which writes it anew"


def read_matrix(out: Path) -> RecordedMatrix:
    """Read ``matrix.json``, and count it again from its cells' ``rounds.jsonl``.

    Raises
    ------
    RunFolderError
        If it is missing, damaged, or says otherwise than the run folders of its cells.
    """
    file = out / FILE
    try:
        text = file.read_bytes().decode()
        parse_json(text)
        found = MatrixRecords.model_validate_json(text, strict=True)
    except OSError as error:
        raise RunFolderError(
            f"{out}: expected a matrix folder with a readable {FILE}: {error.strerror or error}; name the "
            "folder that `kdfed matrix --out` wrote"
        ) from error
    except ValueError as error:  # pydantic's error is one
        why = problems_of(error) if isinstance(error, ValidationError) else str(error)
        raise RunFolderError(f"{file}: {why}; {_AGAIN}") from error
    by_cell: dict[str, list[MatrixRecord]] = {}
    for one in found.cells:
        by_cell.setdefault(one.cell, []).append(one)
    cells = [_read_cell(out, name, told) for name, told in by_cell.items()]
    return RecordedMatrix(found.name, found.headline, found.versions, found.unfinished, cells)


def _read_cell(out: Path, name: str, told: Sequence[MatrixRecord]) -> RecordedCell:
    run = RunFolder(cell_path(out, name))
    experiment = run.read_experiment()
    records = run.read_rounds(experiment)
    summary = run.read_summary(experiment, records)
    frame, held_out = told[0].frame, told[0].held_out
    counted = records_of(name, frame, held_out, experiment, summary)
    for wanted, got in zip(counted, told, strict=False):
        for key in MatrixRecord.model_fields:
            if getattr(wanted, key) != getattr(got, key):
                _refuse(out, got, key, getattr(wanted, key))
    if len(counted) != len(told):
        raise RunFolderError(
            f"{out / FILE}: expected {len(counted)} records of cell {name!r}, as counted from its "
            f"rounds.jsonl, got {len(told)}; {_AGAIN}"
        )
    return RecordedCell(name, frame, held_out, experiment, records, summary)


def _refuse(out: Path, got: MatrixRecord, key: str, wanted: object) -> None:
    raise RunFolderError(
        f"{out / FILE}: {got.cell}, {got.arm}, seed {got.seed}, {got.target}: {key}: expected "
        f"{short(wanted)}, as counted from its rounds.jsonl, got {short(getattr(got, key))}; {_AGAIN}"
    )
