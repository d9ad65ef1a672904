"""The tables that ``kdfed matrix`` prints: the estimate, and what was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from simulations.matrix.counted import Entry, entries, every_pooled, rivals, targets_of, verdict_counts
from simulations.matrix.estimate import Estimate, remaining
from simulations.matrix.jobs import CellState
from simulations.matrix.paying import regrets
from simulations.matrix.records import RecordedCell, RecordedMatrix
from simulations.report.counted import ceiling_of
from simulations.report.words import VERDICTS, signed, target_words, verdict, whole


def estimate_table(name: str, states: Sequence[CellState], estimates: Mapping[str, Estimate]) -> Table:
    """Return how long each cell takes, and how much of it is done.

    Minutes are those of one worker, by the clock; where CPU minutes are unknown, they count as such.
    """
    table = _table(f"{name}: minutes of one worker")
    for words in ("cell", "from"):
        table.add_column(words, overflow="fold")
    for words in ("arms", "seeds", "rounds", "minutes", "CPU minutes", "done", "left"):
        table.add_column(words, justify="right")
    whole_time = left_time = cpu_time = 0.0
    jobs = over = 0
    for state in states:
        cell, estimate = state.cell, estimates[state.cell.name]
        finished = sum(job.state == "done" for job in state.jobs.values())
        seconds = estimate.job * len(state.jobs)
        left = sum(
            remaining(state, estimate, seed) for seed, job in state.jobs.items() if job.state != "done"
        )
        cpu = None if estimate.busy is None else seconds * estimate.busy
        whole_time, left_time, cpu_time = whole_time + seconds, left_time + left, cpu_time + (cpu or seconds)
        jobs, over = jobs + len(state.jobs), over + finished
        table.add_row(
            escape(cell.name),
            "records" if estimate.measured else "one round",
            *(str(len(cell.experiment.arms)), str(len(state.jobs)), str(cell.experiment.horizon)),
            *(
                _minutes(seconds),
                "–" if cpu is None else _minutes(cpu),
                f"{finished} of {len(state.jobs)}",
                _minutes(left),
            ),
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        "",
        "",
        "",
        _minutes(whole_time),
        _minutes(cpu_time),
        f"{over} of {jobs}",
        _minutes(left_time),
    )
    return table


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f}"


def matrix_tables(matrix: RecordedMatrix) -> Iterator[Table]:
    """Yield what was saved of exchanges: cell by cell, then pooled, against each rival of the headline."""
    arm, targets = matrix.headline.arm, targets_of(matrix)
    for rival in rivals(matrix.headline):
        table = _table(f"% of exchanges saved by {escape(arm)} against {escape(rival)}, cell by cell")
        table.add_column("cell", overflow="fold")
        for target in targets:
            table.add_column(target_words(target), justify="right")
        table.add_column("seeds", justify="right")
        for cell in matrix.cells:
            found = entries(cell, arm, rival)
            if found:
                seeds = max(entry["pairs"] for entry in found.values())
                table.add_row(
                    escape(cell_words(cell)),
                    *(_figure(cell, found.get(target)) for target in targets),
                    str(seeds),
                )
        table.caption = escape(counts_words(matrix, rival))
        yield table
        table = _table(f"{escape(arm)} against {escape(rival)}, pooled over cells with equal weights")
        for words in ("target", "cells"):
            table.add_column(words, overflow="fold")
        for words in ("number", "saved", "interval", "middle cell", "verdict"):
            table.add_column(words, justify="right")
        for one in every_pooled(matrix, rival):
            table.add_row(
                *(target_words(one.target), escape(one.title), str(one.cells), one.figure),
                *(escape(one.interval or "–"), one.middle, one.verdict or "–"),
            )
        yield table
    regret = regret_table(matrix)
    if regret is not None:
        yield regret


def regret_table(matrix: RecordedMatrix) -> Table | None:
    """Return what it costs to do as kdfed says, beside always and never starting with the headline's arm."""
    arm, baseline = escape(matrix.headline.arm), escape(matrix.headline.baseline)
    table = _table(f"does it pay: regret, in exchanges beyond the better of {arm} and {baseline}")
    for words in ("target", "cells"):
        table.add_column(words, overflow="fold")
    for words in (f"always {arm}", f"always {baseline}", "said before its exchange", "said after it"):
        table.add_column(words, justify="right")
    for target in targets_of(matrix):
        for one in regrets(matrix, target):
            after = "–" if one.after is None else f"{one.after:.1f}"
            figures = (f"{value:.1f}" for value in (one.always, one.never, one.before))
            table.add_row(target_words(target), one.cells, *figures, after)
    table.caption = "Means over seeds, then over cells; a miss counts as the horizon."
    return table if table.row_count else None


def cell_words(cell: RecordedCell) -> str:
    """Name a cell, and say that it is held out."""
    return f"{cell.name} (held out)" if cell.held_out else cell.name


def _figure(cell: RecordedCell, entry: Entry | None) -> str:
    """Say a saving with its interval; below it the ceiling and the verdict."""
    if entry is None:
        return "–"
    figure = " ".join(part for part in signed(cell.summary, entry) if part)
    below = ", ".join(filter(None, (ceiling_words(cell, entry), verdict(entry))))
    return escape(f"{figure}\n{below}" if below else figure)


def ceiling_words(cell: RecordedCell, entry: Entry) -> str:
    """Say the most that can be saved against the cell's baseline; nothing of another rival."""
    if entry["baseline"] != cell.experiment.baseline_arm:
        return ""
    ceiling = ceiling_of(cell.summary, entry["target"])
    return "" if ceiling is None else f"of {whole(ceiling)}%"


def counts_words(matrix: RecordedMatrix, rival: str) -> str:
    """Say how many cells and targets have which verdict."""
    counted = verdict_counts(matrix, rival)
    told = ", ".join(f"{words} {counted[name]}" for name, words in VERDICTS.items())
    none = f", none {counted['none']}" if counted["none"] else ""
    return f"Verdicts, a cell and target each: {told}{none}. Below a figure: of what can be saved at most."


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
