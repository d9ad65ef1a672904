"""Many runs, one table: ``python -m simulations.savings DIR...`` prints what each experiment's arms saved.

Every figure comes from the run folders' ``summary.json``; nothing is run and nothing is chosen here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdfed.errors import KdfedError
from kdfed.records import RunFolder
from simulations.streams import patient_streams

COSTS = {"exchanges": "exchanges", "participant_uploads": "uploads", "bytes": "bytes"}
"""Cost in ``summary.json`` -> its word in the table's head."""

HEAD = ("experiment", "arm", "target", *(f"{word} saved" for word in COSTS.values()), "seeds", "misses")


def savings_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one row an experiment, arm and target.

    Parameters
    ----------
    summaries
        What ``summary.json`` of each run folder holds.

    Returns
    -------
    str
        Savings are percent of the baseline's cost: the mean over paired seeds, with its 95% interval. Misses
        are counted as (baseline alone / arm alone / both).
    """
    rows = [list(HEAD), ["---"] * len(HEAD)]
    for summary in summaries:
        groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        for comparison in summary["comparisons"]:
            groups.setdefault((comparison["arm"], comparison["target"]), {})[comparison["cost"]] = comparison
        for (arm, target), by_cost in groups.items():
            one = by_cost["exchanges"]
            missed = " / ".join(str(one["censored"][missing]) for missing in ("baseline", "arm", "both"))
            saved = [_interval(by_cost[cost]["saved_percent"], one["pairs"]) for cost in COSTS]
            rows.append([summary["experiment"], arm, target, *saved, str(one["pairs"]), missed])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _interval(saved: Mapping[str, float] | None, pairs: int) -> str:
    if saved is None:
        return "–"
    mean = f"{saved['mean']:.0f}%"
    return mean if pairs == 1 else f"{mean} [{saved['low']:.0f}, {saved['high']:.0f}]"


def main(folders: Sequence[str]) -> int:
    """Print the table of some run folders; return the exit code."""
    if not folders:
        print("error: expected run folders, got none: python -m simulations.savings DIR...", file=sys.stderr)
        return 2
    try:
        table = savings_table([RunFolder(Path(folder)).read_summary() for folder in folders])
        with patient_streams():
            print(table)
    except KdfedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
