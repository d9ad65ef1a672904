"""``matrix.html``: what was saved over all cells, from ``matrix.json`` and the cells' run folders.

The HTML is in ``report.html.jinja``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfed.records import write_atomically
from kdfed.savings import FEWEST
from simulations.matrix.counted import (
    entries,
    every_pooled,
    rivals,
    sentences,
    targets_of,
)
from simulations.matrix.records import RecordedCell, RecordedMatrix, records_of, strategy_title
from simulations.matrix.tables import ceiling_words, cell_words, counts_words
from simulations.report.counted import control_arms, still_rising
from simulations.report.figures import ARM_COLOURS, DASHES, FAINT, drawing, short_name, to_svg
from simulations.report.frame import Cell, Table, render_html
from simulations.report.rows import control_heads, control_rows, labels_of, not_run, starts_of
from simulations.report.words import plural, signed, sunk_words, target_words, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "matrix.html"


def build_matrix_report(out: Path, matrix: RecordedMatrix) -> None:
    """Write ``matrix.html``.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    RunError
        If matplotlib or Jinja2 cannot be loaded.
    """
    write_atomically(out / PAGE, render(matrix).encode(errors="backslashreplace"))


def render(matrix: RecordedMatrix) -> str:
    """Return the page; it needs no other file."""
    colours = _colours(matrix)
    return render_html(
        "matrix/report.html.jinja",
        name=matrix.name,
        cells=matrix.cells,
        held_out=sum(cell.held_out for cell in matrix.cells),
        runs=sum(len({(run["arm"], run["seed"]) for run in cell.summary["runs"]}) for cell in matrix.cells),
        labels=", ".join(dict.fromkeys(labels_of(cell.summary) for cell in matrix.cells)) or "–",
        unfinished=matrix.unfinished,
        notes=list(_notes(matrix)),
        arm=matrix.headline.arm,
        rivals=[_rival(matrix, rival) for rival in rivals(matrix.headline)],
        fewest=FEWEST,
        legend=_legend(matrix, colours),
        curves=[
            {"title": cell_words(cell), "picture": to_svg(_curves(cell, colours), f"cell-{number}")}
            for number, cell in enumerate(matrix.cells)
        ],
        controls=[_controls(cell, colours) for cell in matrix.cells],
        settings=_settings(matrix),
        versions=matrix.versions,
    )


def _colours(matrix: RecordedMatrix) -> dict[str, int]:
    """Return the colour of each arm: the same in every cell, the headline's first."""
    head = matrix.headline
    first = [head.baseline, head.arm, *([] if head.beside is None else [head.beside])]
    arms = dict.fromkeys([*first, *(arm for cell in matrix.cells for arm in cell.experiment.arm_order)])
    return {arm: place % len(ARM_COLOURS) for place, arm in enumerate(arms)}


def _notes(matrix: RecordedMatrix) -> Iterator[str]:
    """Say what a reader must know of cells; what is the same of several is said once."""
    told: dict[str, list[str]] = {}
    for cell in matrix.cells:
        for words in (still_rising(cell.summary), sunk_words(cell.summary), cell.summary["note"]):
            if words:
                told.setdefault(words, []).append(cell.name)
    yield from (f"{', '.join(cells)}: {words}" for words, cells in told.items())
    code = matrix.versions.get("code", "")
    if ", " in code:
        yield f"The runs were not all computed by the same code (hashes of its files: {code})."
    for cell in matrix.cells:
        for failure in cell.summary["failures"]:
            yield (
                f"{cell.name}: {failure['arm']}, seed {failure['seed']}, failed in the phase "
                f"{failure['phase']}, and is in no figure: {failure['reason']}"
            )


def _rival(matrix: RecordedMatrix, rival: str) -> dict[str, Any]:
    arm, targets = matrix.headline.arm, targets_of(matrix)
    rows: list[list[str | Cell]] = []
    has_ceilings = False
    for cell in matrix.cells:
        found = entries(cell, arm, rival)
        for target in targets:
            if target not in found:
                continue
            entry = found[target]
            figure, ends = signed(cell.summary, entry)
            ceiling = ceiling_words(cell, entry).removeprefix("of ")
            has_ceilings |= bool(ceiling)
            first = target == next(iter(found))
            rows.append(
                [
                    Cell(cell_words(cell), bold=True) if first else "",
                    *(cell.frame if first else "", target_words(target), figure, ends or "–"),
                    *(ceiling or "–", verdict(entry) or "–", str(entry["pairs"])),
                ]
            )
    together = every_pooled(matrix, rival)
    return {
        "name": rival,
        "sentences": sentences(matrix, rival),
        "has_ceilings": has_ceilings,
        "counts": counts_words(matrix, rival).partition(" Below")[0],
        "cells": Table(
            ["cell", "frame", "target", "saved", "interval", "ceiling", "verdict", "seeds"],
            rows,
            numbers_from=3,
        ),
        "pooled": Table(
            ["target", "cells", "number", "saved", "interval", "middle cell", "verdict"],
            [
                [
                    *(target_words(one.target), one.title, str(one.cells), Cell(one.figure, bold=True)),
                    *(one.interval or "–", one.middle, one.verdict or "–"),
                ]
                for one in together
            ],
            numbers_from=2,
        ),
        "reasons": list(
            dict.fromkeys(
                f"{target_words(one.target)}, {one.title}: {one.why}." for one in together if one.why
            )
        ),
    }


# ----------------------------------------------------------------------------- curves and controls


def _legend(matrix: RecordedMatrix, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    controls = {arm for cell in matrix.cells for arm in control_arms(cell.summary)}
    shown = {record.arm for cell in matrix.cells for record in cell.records}
    return [
        {"name": arm, "colour": colour, "is_control": arm in controls}
        for arm, colour in colours.items()
        if arm in shown
    ]


def _curves(cell: RecordedCell, colours: Mapping[str, int]) -> Figure:
    """Draw mean accuracy against mean bytes, one line an arm."""
    controls = sorted(control_arms(cell.summary))
    curves = {arm: mean_curve(cell, arm) for arm in cell.experiment.arm_order}
    curves = {arm: curve for arm, curve in curves.items() if len(curve)}
    paid = [x for curve in curves.values() for x, _ in curve if x > 0]
    left = min(paid, default=1.0) / 2
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

        figure = Figure(figsize=(5.0, 3.3), layout="constrained")
        axes = figure.subplots()
        for target in cell.summary["targets"]:
            own = [run["target_accuracy"] for run in cell.summary["runs"] if run["target"] == target]
            known = [level for level in own if level is not None and level <= 1]
            if known:
                axes.axhline(
                    float(np.mean(known)), color=FAINT, linestyle=(0, (1, 2.2)), linewidth=1.2, zorder=1
                )
        for arm, curve in curves.items():
            dashes: Any = DASHES[controls.index(arm) % len(DASHES)] if arm in controls else "-"
            axes.plot(
                [max(x, left) for x, _ in curve],
                [y for _, y in curve],
                color=ARM_COLOURS[colours[arm]],
                linewidth=1.4 if arm in controls else 2.4,
                linestyle=dashes,
                zorder=2 if arm in controls else 3,
            )
        axes.set_xscale("log")
        axes.set_xlabel("bytes up and down")
        axes.set_ylabel("on the evaluation split")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.grid(visible=True)
        axes.tick_params(length=0, which="both")
    return figure


def mean_curve(cell: RecordedCell, arm: str) -> list[tuple[float, float]]:
    """Return (bytes, accuracy) by round, means over the seeds of an arm, as far as every seed ran."""
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for record in cell.records:
        if record.arm == arm:
            by_seed.setdefault(record.seed, []).append((record.bytes_up + record.bytes_down, record.accuracy))
    if not by_seed:
        return []
    common = min(map(len, by_seed.values()))
    means = np.mean([curve[:common] for curve in by_seed.values()], axis=0)
    return [(float(x), float(y)) for x, y in means]


def _bytes(value: float) -> str:
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g} B"


def _controls(cell: RecordedCell, colours: Mapping[str, int]) -> dict[str, Any]:
    rows: list[list[str | Cell]] = []
    for row in control_rows(cell.summary, starts_of(cell.records)):
        first = row.cells[0] if row.arm is None else Cell(row.cells[0], colour=colours[row.arm])
        rows.append([first, *row.cells[1:]])
    horizon, examples = cell.summary["horizon"], cell.summary["evaluation_examples"]
    facts = f"{plural(horizon['rounds'], 'round')} ({horizon['why']})"
    facts += "" if examples is None else f"; {examples:,} evaluation examples"
    return {
        "title": cell_words(cell),
        "facts": f"{facts}.",
        "table": Table(control_heads(cell.summary), rows, numbers_from=1),
        "not_run": not_run(cell.summary),
    }


def _settings(matrix: RecordedMatrix) -> Table:
    rows: list[Sequence[str | Cell]] = []
    for cell in matrix.cells:
        records = records_of(cell.name, cell.frame, cell.held_out, cell.experiment, cell.summary)
        if not records:
            continue
        one, seeds = records[0], cell.experiment.seeds
        rows.append(
            [
                cell_words(cell),
                *(one.dataset, short_name(cell.experiment.model.title, 40), one.distribution),
                *(f"{one.sampled} of {one.participants}", _strategies(cell), ", ".join(map(str, seeds))),
            ]
        )
    return Table(["cell", "data", "model", "distribution", "sampled", "server", "seeds"], rows)


def _strategies(cell: RecordedCell) -> str:
    arms = (cell.experiment.arm(arm) for arm in cell.experiment.arm_order)
    return ", ".join(dict.fromkeys(strategy_title(arm) for arm in arms))
