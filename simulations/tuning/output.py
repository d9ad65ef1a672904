"""What tuning leaves: ``trials.csv``, ``tuned.yaml``, and the table on the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from kdfed.config.document import dump
from kdfed.config.tuning import TuningSettings
from kdfed.records import versions, write_atomically
from simulations.experiments import build_experiment, merge


@dataclass(frozen=True)
class Row:
    """A line of ``trials.csv``: one candidate, one tuning seed, one rung.

    Parameters
    ----------
    arm, candidate, settings
        What was tried; candidate 0 is the arm as it stands. The settings are JSON, by dotted keys.
    seed, rung, rounds
        With what; the rungs count from 1.
    target_accuracy
        To reach with this seed.
    exchanges_to_target
        How many it took; nothing where it was missed.
    converged_accuracy
        Mean of the last ten evaluations.
    kept
        Whether the candidate went on to the next rung; of the last rung, whether it won.
    reason
        Why the trial failed.
    """

    arm: str
    candidate: int
    settings: str
    seed: int
    rung: int
    rounds: int
    target_accuracy: float | None
    exchanges_to_target: int | None
    converged_accuracy: float | None
    kept: str
    reason: str


@dataclass(frozen=True)
class Winner:
    """What an arm ends with.

    Parameters
    ----------
    arm, candidate, changes
        Which.
    trials
        How many candidates there were.
    exchanges
        Median over the tuning seeds to the target, in the last rung; infinite where most miss it.
    converged
        Mean converged accuracy on the tuning examples.
    """

    arm: str
    candidate: int
    changes: Mapping[str, Any]
    trials: int
    exchanges: float
    converged: float


def write_trials(path: Path, rows: Iterable[Row]) -> None:
    """Write ``trials.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    for row in rows:
        writer.writerow(
            f"{value:.6g}" if isinstance(value, float) else value
            for value in (getattr(row, field.name) for field in fields(Row))
        )
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def tuned_text(
    values: Mapping[str, Any],
    horizon: int,
    why: str,
    tuning: TuningSettings,
    winners: Sequence[Winner],
    command: str,
) -> str:
    """Return the experiment with the winners filled in, as YAML with a comment above.

    Parameters
    ----------
    values
        The experiment as its file had it, with the winners' settings.
    horizon, why
        Federated rounds of every arm, and where the number comes from.
    tuning, winners, command
        What was done, for the comment.
    """
    filled = merge(values, {"rounds": {"horizon": horizon, "why": why}})
    build_experiment(filled)  # whoever runs it finds no mistake
    seeds = ", ".join(map(str, tuning.seeds))
    share, rungs = f"{tuning.examples:.0%} of the examples", _listed(tuning.rungs)
    lines = [
        f"{values['name']}, tuned by kdfed {versions()['kdfed']}: {command}",
        f"Tuning seeds {seeds}, {share}; rungs of {rungs} rounds.",
    ]
    for winner in winners:
        made = tuning.by_hand.get(winner.arm, 0)
        hand = f" and {made} by hand" if made else ""
        made_of = f"candidate {winner.candidate}; {winner.trials} trials{hand}"
        lines.append(f"{winner.arm}: {said(winner.changes)} ({made_of})")
    comment = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    return comment + dump(filled)


def said(changes: Mapping[str, Any]) -> str:
    """Return settings of a candidate in words."""
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in changes.items()) or "as it stands"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def winners_table(winners: Sequence[Winner], tuning: TuningSettings) -> Table:
    """Return what every arm ends with."""
    table = Table(
        title=f"tuned on seeds {_listed(tuning.seeds)}, which are never reported",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for word in ("arm", "settings"):
        table.add_column(word, overflow="fold")
    for word in ("trials", "exchanges", "converged"):
        table.add_column(word, justify="right", min_width=len(word))
    for winner in winners:
        made = tuning.by_hand.get(winner.arm, 0)
        table.add_row(
            escape(winner.arm),
            escape(said(winner.changes)),
            f"{winner.trials}" + (f" + {made} by hand" if made else ""),
            "missed" if math.isinf(winner.exchanges) else f"{winner.exchanges:g}",
            f"{winner.converged:.3f}",
        )
    table.caption = (
        f"Exchanges: median over the seeds, to {tuning.target} of the best candidate (of an arm with a warm "
        "start: of the tuned baseline)."
    )
    return table
