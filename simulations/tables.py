"""The tables that the ``kdfed`` command prints: results, who holds which classes, what there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from kdfed.convergence import CONVERGENCE
from kdfed.pooled import is_open
from kdfed.records import RoundRecord, RunFolder
from simulations.report.counted import (
    cells_of,
    comparison_of,
    is_few,
    median,
    runs_to,
    spent,
    still_rising,
)
from simulations.report.figures import short_name
from simulations.report.rows import control_heads, control_rows, labels_of, not_run, rising, starts_of
from simulations.report.words import (
    Saving,
    number,
    paying_words,
    plural,
    recipe_words,
    signed,
    sunk_words,
    target_words,
    verdict,
    verdict_line,
)

EXCHANGE = (
    "An exchange is a communication round: a federated round, or the one that collects the teachers or the "
    "statistics of a head."
)
"""What the first table says below itself."""

SHOWN_PARTICIPANTS = 40
"""Rows of the partition table; more participants are summed up in one line."""

SHOWN_CLASSES = 20
"""Columns of the partition table; more classes are summed up in one column."""


COLUMNS = {
    "exchanges": ("exchanges", lambda value: f"{value:g}"),
    "participant_uploads": ("uploads", number),
    "bytes": ("bytes", lambda value: decimal(round(value))),
    "local_steps": ("local steps", number),
}
"""Costs of the tables of a run, the first the loudest: their words and how they are written."""


def cost_table(summary: Mapping[str, Any]) -> Table:
    """Return what each arm paid to reach each target, as medians over seeds, a miss later than everything.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    """
    headers = [*(words for words, _ in COLUMNS.values()), "missed"]
    title = f"cost to target, median of {plural(len(summary['seeds']), 'seed')}"
    table = _table(title, ("arm", "target"), headers)
    for arm, target in dict.fromkeys((run["arm"], run["target"]) for run in summary["runs"]):
        paid = {cost: spent(summary, arm, target, cost) for cost in COLUMNS}
        table.add_row(
            escape(arm),
            target_words(target),
            *(_middle(paid[cost], write) for cost, (_, write) in COLUMNS.items()),
            _missed(summary, arm, target),
        )
    table.caption = f"{EXCHANGE} {_head(summary)}"
    return table


def _head(summary: Mapping[str, Any]) -> str:
    """Say the horizon and why, the labels of the server, and on how many examples hits are read."""
    horizon = summary["horizon"]
    why = f" ({escape(horizon['why'])})" if horizon["why"] else ""
    told = f"Horizon: {plural(horizon['rounds'], 'round')}{why}. "
    told += f"Labels the server fits on: {labels_of(summary)}."
    if summary["evaluation_examples"] is not None:
        told += f" Read on {summary['evaluation_examples']:,} evaluation examples."
    for words in (sunk_words(summary), recipe_words(summary), paying_words(summary)):
        told += f" {escape(words)}" if words else ""
    return f"{escape(summary['note'])} {told}" if summary.get("note") else told


def _middle(values: Sequence[float], write: Callable[[float], str]) -> str:
    if not values:
        return "–"
    middle = median(values)
    return "–" if math.isinf(middle) else write(middle)


def _missed(summary: Mapping[str, Any], arm: str, target: str) -> str:
    """Say how many runs missed a target; those that did not finish, or had none to reach, are no misses."""
    runs = runs_to(summary, arm, target)
    unknown = sum(is_open(run, summary["horizon"]["rounds"]) for run in runs)
    missed = sum(run["hit"] is None for run in runs) - unknown
    words = [f"{missed} of {len(runs)}"] if missed else []
    words += [f"{unknown} unknown"] if unknown else []
    return ", ".join(words) or "none"


def _table(title: str, words: Sequence[str], headers: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for word in words:
        table.add_column(word, overflow="fold")
    for header in headers:
        table.add_column(header, justify="right", min_width=len(header))
    return table


def savings_table(summary: Mapping[str, Any]) -> Table | None:
    """Return what each arm saved against the baseline, or None where there is nothing to compare.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    """
    cells = cells_of(summary)
    if not cells:
        return None
    baseline = comparison_of(summary, *cells[0], "exchanges")["baseline"]
    few = is_few(len(summary["seeds"]))
    figures = "one figure a seed, no interval" if few else "median over seeds, its interval"
    headers = [*(words for words, _ in COLUMNS.values()), "verdict", "seeds"]
    table = _table(f"% saved against {escape(baseline)}: {figures}", ("arm and target",), headers)
    for arm, target in cells:
        row = [comparison_of(summary, arm, target, cost) for cost in COLUMNS]
        table.add_row(
            f"{escape(arm)}\n{target_words(target)}",
            *(_saving(summary, comparison) for comparison in row),
            verdict(row[0]) or "–",
            _pairs(row[0]),
        )
    table.caption = escape(verdict_line(summary))
    return table


def _saving(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    return escape("\n".join(part for part in signed(summary, comparison) if part))


def _pairs(comparison: Mapping[str, Any]) -> str:
    left_out = comparison["failed"] + comparison["without_federation"]
    return str(comparison["pairs"]) + (f" of {comparison['pairs'] + left_out}" if left_out else "")


def convergence_table(summary: Mapping[str, Any]) -> Table:
    """Return every arm's rounds to convergence, and when its curve is known to be flat.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    """
    figures = "one figure a seed" if is_few(len(summary["seeds"])) else "median over seeds"
    title = f"rounds to convergence ({target_words(CONVERGENCE)}), {figures}"
    headers = ("rounds", "saved", "verdict", "flat at", "half", "double", "ends at")
    table = _table(title, ("arm",), headers)
    for row in rising(summary):
        saved = row.saved or Saving("–", "", "", "none")
        cells = (
            f"{row.arm} (control)" if row.is_control else row.arm,
            row.rounds,
            "\n".join(part for part in (saved.figure, saved.interval, saved.others) if part),
            *(row.verdict or "–", row.flat, row.half, row.double, row.accuracy),
        )
        table.add_row(*map(escape, cells))
    told = "Flat at: the round at which its own curve is known to be flat (median); then with half and "
    told += "double the tolerance."
    table.caption = escape(f"{told} {still_rising(summary)}".rstrip())
    return table


def controls_table(summary: Mapping[str, Any], starts: Mapping[str, float]) -> Table:
    """Return the arms, the controls and the ceiling: labels, accuracies, exchanges to each target.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    starts
        Accuracy of each arm's start; see :func:`simulations.report.rows.starts_of`.
    """
    rows, ending = control_rows(summary, starts), " of converged"
    heads = control_heads(summary)[1:]
    shares = all(target.endswith("%-of-converged") for target in summary["targets"])
    title = (
        f"controls, and exchanges to {'shares of what the baseline converges to' if shares else 'targets'}"
    )
    widest = max(len(word) for row in rows for word in row.cells[0].split())
    table = _table(title, (), ())
    table.add_column("", overflow="fold", min_width=min(widest, 14))
    for head in heads:
        words = head.removesuffix(ending) if shares else head
        table.add_column(escape(words), justify="right", overflow="fold", min_width=min(len(words), 8))
    for row in rows:
        table.add_row(*map(escape, row.cells))
    if not_run(summary):
        table.caption = escape(f"{not_run(summary)}.")
    return table


def result_tables(summary: Mapping[str, Any], records: Sequence[RoundRecord]) -> list[Table]:
    """Return every table that a run prints.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    records
        What ``rounds.jsonl`` holds.
    """
    savings = savings_table(summary)
    return [
        cost_table(summary),
        *([] if savings is None else [savings]),
        convergence_table(summary),
        controls_table(summary, starts_of(records)),
    ]


def partition_table(counts: np.ndarray, class_names: Sequence[str], title: str) -> Table:
    """Return who holds how many examples of which class.

    Parameters
    ----------
    counts
        int64 [participants, classes].
    class_names
        One a class.
    title
        Above the table.
    """
    participants, classes = counts.shape
    shown = min(classes, SHOWN_CLASSES)
    table = Table(title=title, title_justify="left", row_styles=("", "dim"), box=None)
    table.add_column("who", justify="right")
    for name in class_names[:shown]:
        table.add_column(escape(short_name(str(name))), justify="right")
    if classes > shown:
        table.add_column(f"{classes - shown} more", justify="right")
    table.add_column("classes", justify="right", style="cyan")
    table.add_column("examples", justify="right", style="cyan")
    for participant, row in enumerate(counts[:SHOWN_PARTICIPANTS]):
        _add(table, str(participant), row, shown, str(int((row > 0).sum())))
    if participants > SHOWN_PARTICIPANTS:
        rest = counts[SHOWN_PARTICIPANTS:]
        _add(table, f"{len(rest)} more", rest.sum(axis=0), shown, "")
    table.add_section()
    _add(table, "all", counts.sum(axis=0), shown, "")
    return table


def _add(table: Table, name: str, row: np.ndarray, shown: int, held: str) -> None:
    cells = [str(int(count)) if count else "·" for count in row[:shown]]
    if len(row) > shown:
        cells.append(str(int(row[shown:].sum())))
    table.add_row(name, *cells, held, str(int(row.sum())))


def show_results(console: Console, folder: RunFolder) -> None:
    """Print what a finished run folder says, and where it is."""
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file folds no words
    console.print()
    for table in result_tables(folder.read_summary(), folder.read_rounds()):
        console.print(table, "", sep="\n")
    console.print(f"records and report: {escape(str(folder.path))}", soft_wrap=True)
