"""Many runs, one table: ``python -m simulations.savings DIR...`` prints what each experiment's arms saved.

Every figure comes from the run folders' ``summary.json``; nothing is run and nothing is chosen here. A cell
is one arm and target of one run folder. Below the cells stand the verdicts, counted, and what each arm saved
over all run folders (:mod:`kdfed.pooled`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdfed.errors import KdfedError
from kdfed.pooled import DRAWS, Pooled, pool
from kdfed.records import RunFolder
from kdfed.savings import FEWEST
from simulations.report.counted import (
    Summary,
    ceiling_of,
    cells_of,
    comparison_of,
    control_arms,
    is_few,
    ratios_of,
    verdicts,
)
from simulations.report.rows import labels_of
from simulations.report.words import VERDICTS, interval, plural, signed, verdict, whole
from simulations.streams import patient_streams

COSTS = {
    "exchanges": "exchanges",
    "participant_uploads": "uploads",
    "bytes": "bytes",
    "local_steps": "local steps",
    "rounds": "rounds",
}
"""Cost in ``summary.json`` -> its word in the table's head."""

_SAVED = tuple(f"{word} saved" for word in COSTS.values())

HEAD = ("experiment", "arm", "target", *_SAVED, "ceiling", "verdict", "seeds", "misses")
POOLED_HEAD = ("pooled over", "arm", "target", *_SAVED)


def savings_table(summaries: Sequence[Summary]) -> str:
    """Return a Markdown table with one row an experiment, arm and target, and below it one pooled over them.

    Parameters
    ----------
    summaries
        What ``summary.json`` of each run folder holds.

    Returns
    -------
    str
        Savings are percent of the baseline's cost: the median over paired seeds with its interval; with
        fewer than six seeds one figure a seed. Misses are counted as (baseline alone / arm alone / both). The
        ceiling is what an arm saves that needs one exchange. Rounds to 99% of converged are the rounds to
        convergence.
    """
    rows = [_row(summary, *cell) for summary in summaries for cell in _cells(summary)]
    lines = [_markdown([HEAD, *rows]), "", _verdict_line(summaries), *dict.fromkeys(_notes(summaries))]
    pooled, reasons = _pooled(summaries)
    if pooled:
        lines += ["", _markdown([POOLED_HEAD, *pooled]), "", _EXPLAINED, *reasons]
    return "\n".join(lines)


_EXPLAINED = (
    f"Pooled with equal weights over the cells, seeds drawn anew within cells {DRAWS:,} times (95% "
    "percentile interval): for these cells."
)


def _cells(summary: Summary) -> list[tuple[str, str]]:
    """Return every cell, those of controls last."""
    controls = control_arms(summary)
    every = dict.fromkeys((entry["arm"], entry["target"]) for entry in summary["comparisons"])
    return [*cells_of(summary), *(cell for cell in every if cell[0] in controls)]


def _row(summary: Summary, arm: str, target: str) -> list[str]:
    one = comparison_of(summary, arm, target, "exchanges")
    saved = [" ".join(signed(summary, comparison_of(summary, arm, target, cost))).strip() for cost in COSTS]
    missed = " / ".join(str(one["censored"][missing]) for missing in ("baseline", "arm", "both"))
    ceiling = ceiling_of(summary, target)
    said = "control" if arm in control_arms(summary) else verdict(one) or "–"
    bounds = ["–" if ceiling is None else f"{whole(ceiling)}%", said]
    return [summary["experiment"], arm, target, *saved, *bounds, str(one["pairs"]), missed]


def _verdict_line(summaries: Sequence[Summary]) -> str:
    """Count the verdicts of all cells of all runs."""
    counted = [verdicts(summary) for summary in summaries]
    told = ", ".join(f"{words} {sum(one[name] for one, _ in counted)}" for name, words in VERDICTS.items())
    without = sum(few for _, few in counted)
    none = f", none {without} (a verdict needs {FEWEST} seeds)" if without else ""
    return f"Verdicts by exchanges, controls left out: {told}{none}."


def _notes(summaries: Sequence[Summary]) -> list[str]:
    """Say of each run its horizon and why, the labels of the server, and what else a reader must know."""
    notes = []
    for summary in summaries:
        horizon, labels = summary["horizon"], labels_of(summary)
        told = (
            f"{plural(horizon['rounds'], 'round')} ({horizon['why']}); labels the server fits on: {labels}."
        )
        notes.append(f"{summary['experiment']}: {told} {summary['note']}".strip())
    return notes


# ----------------------------------------------------------------------------- pooled over runs


def _pooled(summaries: Sequence[Summary]) -> tuple[list[list[str]], list[str]]:
    """Return a row for each arm and target of several runs, and why figures are missing."""
    groups: dict[tuple[str, str], list[Summary]] = {}
    for summary in summaries:
        for cell in cells_of(summary):
            groups.setdefault(cell, []).append(summary)
    rows, reasons = [], []
    for (arm, target), members in groups.items():
        if len(members) < 2:
            continue
        figures = []
        for cost in COSTS:
            ratios = [_ratios(summary, comparison_of(summary, arm, target, cost)) for summary in members]
            found = pool(ratios)
            figures.append(_figure(found))
            if cost == "exchanges":
                why = _why(found, arm, target, members, ratios)
                reasons += [f"{arm}, {target}: {why}."] if why else []
        rows.append([plural(len(members), "cell"), arm, target, *figures])
    return rows, reasons


def _ratios(summary: Summary, comparison: Mapping[str, Any]) -> list[float]:
    """Return a cell's log-ratios; none where its baseline pays nothing in some seed."""
    return [] if comparison["saved_percent"] is None else list(ratios_of(summary, comparison).values())


def _figure(found: Pooled) -> str:
    if found.log_ratio is None:
        return "–"
    figure = f"{whole(_percent(found.log_ratio))}%"
    if found.low is None or found.high is None:
        return figure
    low = None if math.isinf(found.high) else _percent(found.high)
    return f"{figure} {interval({'low': low, 'high': _percent(found.low)})}"


def _percent(log_ratio: float) -> float:
    return -100 * math.expm1(log_ratio)


def _why(
    found: Pooled, arm: str, target: str, members: Sequence[Summary], cells: Sequence[Sequence[float]]
) -> str:
    """Say why there is no figure, or no interval."""
    if found.log_ratio is not None:
        few = [
            summary["experiment"] for summary, cell in zip(members, cells, strict=True) if is_few(len(cell))
        ]
        return f"no interval, because of fewer than {FEWEST} seeds in {', '.join(few)}" if few else ""
    told = []
    for summary, median in zip(members, found.medians, strict=True):
        if not math.isfinite(median):
            words, _ = signed(summary, comparison_of(summary, arm, target, "exchanges"))
            told.append(f"{words} in {summary['experiment']}")
    return f"no figure, because a median is no number: {'; '.join(told)}"


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    head, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *others))


def _summary_of(run: RunFolder) -> Summary:
    """Return a summary, held against its records where they lie beside it."""
    if not (run.path / "rounds.jsonl").exists():
        return run.read_summary()
    experiment = run.read_experiment()
    return run.read_summary(experiment, run.read_rounds(experiment))


def main(folders: Sequence[str]) -> int:
    """Print the table of some run folders; return the exit code."""
    if not folders:
        print("error: expected run folders, got none: python -m simulations.savings DIR...", file=sys.stderr)
        return 2
    try:
        table = savings_table([_summary_of(RunFolder(Path(folder))) for folder in folders])
        with patient_streams():
            print(table)
    except KdfedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
