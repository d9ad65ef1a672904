"""The matrix file, as frozen pydantic models, and the experiments that it means, checked.

A cell is an experiment: ``base``, then its frame, then its own keys, merged as ``--set`` and arms are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from kdfed.config import Experiment, merge, read_mapping, unrelated
from kdfed.config.merging import undotted
from kdfed.config.mistakes import describe_all
from kdfed.errors import ConfigError, Mistake, near, shown
from kdfed.named import search_in
from kdfed.preflight import check_data
from kdfed.settings import Distinct, Settings, Text
from simulations.experiments import FAMILIES, build_experiment

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Layer = dict[Text, Any]


class Headline(Settings):
    """What the two sentences of a matrix are about."""

    arm: Text
    """The arm whose savings are read."""
    baseline: Text
    """The arm that it is compared with in the first sentence; the baseline of every cell that has both."""
    beside: Text | None = None
    """The arm that it is compared with in the second. Default: there is no second sentence."""
    aims: dict[Text, Annotated[float, Field(gt=0, lt=100)]] = Field(default_factory=dict)
    """Percent of exchanges by target, such as ``{95%-of-converged: 60}``. Cells in which an arm of one
    exchange would save less are pooled apart: there nobody can reach the aim."""


class MatrixFile(Settings):
    """A matrix as it is written."""

    name: Name
    """The default folder is ``runs/<name>``."""
    base: Layer = Field(default_factory=dict)
    """Keys of an experiment that every cell has."""
    frames: dict[Name, Layer] = Field(default_factory=dict)
    """Keys that cells with this ``frame`` have, over those of ``base``."""
    cells: Annotated[dict[Name, Layer], Field(min_length=1, max_length=1000)]
    """The cells by name; each replaces some keys. An arm that is null there is left out."""
    held_out: Annotated[tuple[Text, ...], Distinct] = ()
    """Cells that nobody tuned on. They are told apart, and pooled apart."""
    headline: Headline
    """What the two sentences are about."""


class PartFile(Settings):
    """A part of another matrix: fewer cells, with fewer seeds."""

    name: Name
    """The default folder is ``runs/<name>``."""
    of: Text
    """The other matrix file, in the same folder."""
    only: Annotated[tuple[Text, ...], Field(min_length=1), Distinct]
    """Which of its cells."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1), Distinct]
    """The seeds of each."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a matrix.

    Parameters
    ----------
    experiment
        Resolved; its name is the cell's.
    frame
        The name of its frame, empty where it has none.
    held_out
        Whether nobody tuned on it.
    """

    experiment: Experiment
    frame: str = ""
    held_out: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return self.experiment.name

    def alone(self, seed: int) -> Experiment:
        """Return its experiment with a single seed."""
        copy = self.experiment.model_copy(update={"seeds": (seed,)})
        return copy if self.experiment.folder is None else copy.found_in(self.experiment.folder)


@dataclass(frozen=True)
class Matrix:
    """A matrix, checked.

    Parameters
    ----------
    name, headline
        As in the file.
    cells
        In the order of the file.
    """

    name: str
    headline: Headline
    cells: tuple[Cell, ...]


def load_matrix(path: Path) -> Matrix:
    """Read a matrix file, and check every cell of it, their data included.

    Parameters
    ----------
    path
        The YAML file. What it names ``package.module:name`` is looked for in its folder too.

    Raises
    ------
    ConfigError
        Every mistake of every cell at once, at ``cells.NAME.key``.
    """
    folder = path.absolute().parent
    search_in(folder)
    values = read_mapping(path)
    if "of" in values:
        values = _part(path, values)
    file = _validated(path, values, MatrixFile)
    mistakes, cells = list[Mistake](), list[Cell]()
    found: dict[tuple[str, str], list[str]] = {}  # a mistake of base is one of every cell: it is said once
    for name in file.cells:
        cell, wrong = _cell(file, name, folder)
        if cell is not None:
            cells.append(cell)
        for mistake in wrong:
            found.setdefault((mistake.key, mistake.message), []).append(name)
    for (key, message), (first, *others) in found.items():
        more = f" (so in {len(others)} more: {', '.join(others[:3])}{', …' if others[3:] else ''})"
        mistakes.append(Mistake(f"cells.{first}.{key}".rstrip("."), message + (more if others else "")))
    mistakes += unrelated(_of_names(file, cells if len(cells) == len(file.cells) else []), mistakes)
    if mistakes:
        raise ConfigError(str(path), mistakes)
    return Matrix(file.name, file.headline, tuple(cells))


F = TypeVar("F", MatrixFile, PartFile)


def _validated(path: Path, values: Mapping[str, Any], kind: type[F]) -> F:
    try:
        text = json.dumps(values, default=str)
        return kind.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(str(path), describe_all(error.errors(), values, kind)) from error


def _part(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole file that a part of another matrix stands for."""
    part = _validated(path, values, PartFile)
    other = path.with_name(part.of)
    whole = read_mapping(other)
    if "of" in whole:
        message = f"expected a matrix that is whole, got {shown(part.of)}, which is itself a part"
        raise ConfigError(str(path), [Mistake("of", message)])
    file = _validated(other, whole, MatrixFile)
    mistakes = [
        Mistake(f"only.{index}", f"expected a cell of {part.of}, got {shown(name)}{near(name, file.cells)}")
        for index, name in enumerate(part.only)
        if name not in file.cells
    ]
    if mistakes:
        raise ConfigError(str(path), mistakes)
    return {
        **whole,
        "name": part.name,
        "cells": {name: {**file.cells[name], "seeds": list(part.seeds)} for name in part.only},
        "held-out": [name for name in file.held_out if name in part.only],
    }


def _cell(file: MatrixFile, name: str, folder: Path) -> tuple[Cell | None, list[Mistake]]:
    """Return a cell, or what is wrong with it by its own keys."""
    own = dict(file.cells[name])
    frame = own.pop("frame", "")
    if frame and (not isinstance(frame, str) or frame not in file.frames):
        return None, [
            Mistake("frame", f"expected one of frames, got {shown(frame)}{near(frame, file.frames)}")
        ]
    layers = [file.base, file.frames.get(frame, {}), own]
    families, _ = FAMILIES.open_to(layers)
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge(values, layer, families)
    if "name" in values:
        return None, [Mistake("name", "is the cell's own; remove it, in base and in frames too")]
    values = undotted({**values, "name": name})
    if isinstance(values.get("arms"), Mapping):
        values["arms"] = {arm: keys for arm, keys in values["arms"].items() if keys is not None}
    try:
        experiment = build_experiment(values).found_in(folder)
    except ConfigError as error:
        return None, list(error.mistakes)
    if experiment.rounds.horizon == "auto":
        return None, [
            Mistake(
                "rounds.horizon",
                "expected a number, got 'auto': all seeds of a cell run equally long; `kdfed tune` finds one",
            )
        ]
    return Cell(experiment, str(frame), name in file.held_out), check_data(experiment)


def _of_names(file: MatrixFile, cells: Sequence[Cell]) -> Iterator[Mistake]:
    """Yield names in the file that name nothing; of arms only where all cells are known."""
    for index, name in enumerate(file.held_out):
        if name not in file.cells:
            yield Mistake(f"held-out.{index}", f"expected a cell, got {shown(name)}{near(name, file.cells)}")
    if not cells:
        return
    head = file.headline
    arms = {arm for cell in cells for arm in cell.experiment.arms}
    for key, arm in (("arm", head.arm), ("baseline", head.baseline), ("beside", head.beside)):
        if arm is not None and arm not in arms:
            yield Mistake(f"headline.{key}", f"expected an arm of a cell, got {shown(arm)}{near(arm, arms)}")
    if head.arm in (head.baseline, head.beside):
        yield Mistake("headline.arm", f"expected another arm than it is compared with, got {shown(head.arm)}")
    for cell in cells:
        has = {head.arm, head.baseline} <= set(cell.experiment.arms)
        if has and cell.experiment.baseline_arm != head.baseline:
            yield Mistake(
                f"cells.{cell.name}.baseline",
                f"expected {head.baseline!r}, the headline's, got {cell.experiment.baseline_arm!r}; targets "
                "are shares of what it converges to",
            )
    targets = {str(target) for cell in cells for target in cell.experiment.counted_targets}
    for target in head.aims:
        if target not in targets:
            yield Mistake(
                f"headline.aims.{target}",
                f"expected a target of a cell, got {shown(target)}{near(target, targets)}",
            )


def chosen_cells(
    matrix: Matrix, names: Sequence[str] | None, seeds: Sequence[str] | None
) -> dict[str, list[int]]:
    """Return the seeds to run by cell.

    Parameters
    ----------
    matrix
        All cells.
    names
        Of those to run. Default: all.
    seeds
        Of those to run, as words. Default: all.

    Raises
    ------
    ConfigError
        If a name is none of a cell, or a seed none of a chosen cell.
    """
    known = {cell.name: cell for cell in matrix.cells}
    wrong = [
        Mistake("--only", f"expected a cell, got {shown(name)}{near(name, known)}")
        for name in names or ()
        if name not in known
    ]
    cells = [cell for cell in matrix.cells if names is None or cell.name in names]
    every = {str(seed) for cell in cells for seed in cell.experiment.seeds}
    wrong += _strangers(seeds or (), every) if cells else []
    if wrong:
        raise ConfigError("the command line", wrong)
    return {
        cell.name: [seed for seed in cell.experiment.seeds if seeds is None or str(seed) in seeds]
        for cell in cells
    }


def _strangers(seeds: Iterable[str], every: set[str]) -> list[Mistake]:
    return [
        Mistake("--seeds", f"expected seeds of the matrix, got {shown(seed)}{near(seed, every)}")
        for seed in seeds
        if seed not in every
    ]
