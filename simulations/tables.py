"""The tables that the ``kdfed`` command prints: results, who holds which classes, what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from rich import box
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from simulations.report.figures import short_name

EXCHANGE = "An exchange is a communication round: a federated round, or the one that collects the teachers."
"""What the first table says below itself."""

SHOWN_PARTICIPANTS = 40
"""Rows of the partition table; more participants are summed up in one line."""

SHOWN_CLASSES = 20
"""Columns of the partition table; more classes are summed up in one column."""


def cost_table(summary: Mapping[str, Any]) -> Table:
    """Return what each arm paid to reach each target, as means over the seeds that reached it.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    """
    headers = ("rounds", "exchanges", "uploads", "bytes", "missed")
    table = _table("cost to target (mean over the seeds that reached it)", ("arm", "target"), headers)
    table.caption = EXCHANGE
    for arm, target in dict.fromkeys((run["arm"], run["target"]) for run in summary["runs"]):
        runs = [run for run in summary["runs"] if (run["arm"], run["target"]) == (arm, target)]
        hits = [hit for hit in (run[f"{run['rule']}_hit"] for run in runs) if hit is not None]
        table.add_row(
            escape(arm),
            target,
            *(_mean(hits, key) for key in ("round", "exchanges", "participant_uploads")),
            decimal(round(fmean(hit["bytes_up"] + hit["bytes_down"] for hit in hits))) if hits else "–",
            _missed(runs),
        )
    return table


def _missed(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say how many runs missed a target; those that did not finish, or had none to reach, are no misses."""
    without = [run for run in runs if run[f"{run['rule']}_hit"] is None]
    open_ = [r for r in without if r["target_accuracy"] is None or r["stopped"] in ("failed", "interrupted")]
    missed = len(without) - len(open_)
    words = [f"{missed} of {len(runs)}"] if missed else []
    words += [f"{len(open_)} unknown"] if open_ else []
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


def _mean(hits: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{fmean(hit[key] for hit in hits):.4g}" if hits else "–"


SAVED_COSTS = ("rounds", "exchanges", "participant_uploads", "bytes")
"""Columns of the savings table; the summary also compares local steps."""


def savings_table(summary: Mapping[str, Any]) -> Table | None:
    """Return what each arm saved against the baseline, or None where there is nothing to compare.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    """
    comparisons = {(c["arm"], c["target"], c["cost"]): c for c in summary["comparisons"]}
    if not comparisons:
        return None
    baseline = next(iter(comparisons.values()))["baseline"]
    headers = ("rounds", "exchanges", "uploads", "bytes", "pairs")
    table = _table(
        f"saved against {escape(baseline)}: mean over paired seeds, its 95% interval",
        ("arm and target",),
        headers,
    )
    for arm, target in dict.fromkeys((arm, target) for arm, target, _ in comparisons):
        row = [comparisons[arm, target, cost] for cost in SAVED_COSTS]
        censored = row[0]["censored"]
        left_out = censored["baseline"] + censored["both"] + row[0]["failed"]
        table.add_row(
            f"{escape(arm)}\n{target}",
            *(_saving(comparison) for comparison in row),
            str(row[0]["pairs"]) + (f" of {row[0]['pairs'] + left_out}" if left_out else ""),
        )
    table.caption = (
        "Pairs whose baseline missed, or in which a run failed, are not counted; an arm that misses counts "
        "in full."
    )
    return table


def _saving(comparison: Mapping[str, Any]) -> str:
    saved = comparison["saved_percent"]
    if saved is None:
        return "–"
    interval = "" if comparison["pairs"] < 2 else escape(f"\n[{saved['low']:.0f}, {saved['high']:.0f}]")
    return f"{saved['mean']:.0f}%{interval}"


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
