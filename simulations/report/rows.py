"""Rows of the tables that the page and the terminal both show: convergence, and controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from kdfed.convergence import CONVERGENCE
from kdfed.records import RoundRecord
from simulations.report.counted import (
    Control,
    Summary,
    arms_of,
    ceiling_of,
    comparison_of,
    control_arms,
    controls_of,
    converged,
    convergence_of,
    level_of,
    median,
    runs_to,
    spent,
)
from simulations.report.words import Saving, costs, percent, saving, target_words, verdict, whole


class Row(NamedTuple):
    """A row: of an arm, whose colour it may show, or of none."""

    cells: list[str]
    arm: str | None = None
    is_control: bool = False


# ----------------------------------------------------------------------------- convergence


class Rising(NamedTuple):
    """How long an arm's curves rise, in words.

    Parameters
    ----------
    arm, is_control
        Which.
    rounds
        To convergence.
    saved
        Of them against the baseline; None of the baseline.
    verdict
        Of that, or nothing.
    flat, half, double
        The round at which its curve is known to be flat, with the tolerance as it is, halved and doubled.
    accuracy
        At which it ends.
    """

    arm: str
    is_control: bool
    rounds: str
    saved: Saving | None
    verdict: str
    flat: str
    half: str
    double: str
    accuracy: str


def rising(summary: Summary) -> list[Rising]:
    """Return every arm's rounds to convergence, its plateau beside it."""
    controls, compared = control_arms(summary), {entry["arm"] for entry in summary["comparisons"]}
    found = []
    for one in convergence_of(summary):
        said, told = None, ""
        if one.arm in compared:
            comparison = comparison_of(summary, one.arm, CONVERGENCE, "rounds_to_convergence")
            said, told = saving(summary, comparison), verdict(comparison)
        plateau, half, double = (_flat(values) for values in (one.plateau, one.half, one.double))
        is_control, rounds = one.arm in controls, costs(one.rounds)
        found.append(
            Rising(one.arm, is_control, rounds, said, told, plateau, half, double, score(one.accuracy))
        )
    return found


def _flat(rounds: Sequence[float]) -> str:
    if not rounds:
        return "–"
    return "never" if math.isinf(median(rounds)) else f"{median(rounds):g}"


def score(value: float | None) -> str:
    """Say an accuracy that may not be known."""
    return "–" if value is None else percent(value)


# ----------------------------------------------------------------------------- controls


def starts_of(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Return every arm's accuracy before the first federated round, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record.round == 0:
            found.setdefault(record.arm, []).append(record.accuracy)
    return {arm: fmean(values) for arm, values in found.items()}


def labels_of(summary: Summary) -> str:
    """Say how many of the server's labels the arms fit or choose with, at most, controls left out."""
    labels = summary["server_labels"]
    if labels is None:
        return "–"
    return f"{labels:,}" if labels == 0 else f"≤ {labels:,}"


def control_heads(summary: Summary) -> list[str]:
    """Return the heads of :func:`control_rows`."""
    return [
        "",
        "server labels",
        "start",
        "converged",
        "test",
        *(f"to {target_words(t)}" for t in summary["targets"]),
    ]


def control_rows(summary: Summary, starts: Mapping[str, float]) -> list[Row]:
    """Return the arms, the four controls and the ceiling: labels, accuracies, exchanges to each target.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    starts
        Accuracy of an arm's start, where it is known.
    """
    targets, rows = summary["targets"], []
    for arm in arms_of(summary):
        if arm not in control_arms(summary):
            labels = labels_of(summary)
            tests = [run["totals"]["test_accuracy"] for run in runs_to(summary, arm, targets[0])]
            known = [test for test in tests if test is not None]
            accuracies = (starts.get(arm), converged(summary, arm), fmean(known) if known else None)
            rows.append(Row([arm, labels, *map(score, accuracies), *_exchanges(summary, arm)], arm))
    rows += [_control_row(summary, control) for control in controls_of(summary)]
    ceilings = [ceiling_of(summary, target) for target in targets]
    words = ["–" if one is None else f"{whole(one)}% saved" for one in ceilings]
    rows.append(Row(["ceiling: one exchange", *4 * ["–"], *words]))
    return rows


def _control_row(summary: Summary, control: Control) -> Row:
    targets = summary["targets"]
    if control.arm is None:
        return Row([control.what, "not run", *["–"] * (3 + len(targets))], None, True)
    labels = "0" if control.labels is None else f"{control.labels:,}"
    reached = _exchanges(summary, control.arm)
    if control.is_alone:
        levels = [level_of(summary, target) for target in targets]
        reached = [
            "–"
            if level is None or control.start is None
            else "there at 0"
            if control.start >= level
            else "below it"
            for level in levels
        ]
    accuracies = (control.start, control.converged, control.test)
    return Row(
        [control.what, labels, *map(score, accuracies), *reached],
        None if control.is_alone else control.arm,
        True,
    )


def _exchanges(summary: Summary, arm: str) -> list[str]:
    found = []
    for target in summary["targets"]:
        paid = spent(summary, arm, target, "exchanges")
        words = costs(paid)
        if paid and not any(paid):
            words = "0: without federation"
        found.append(words)
    return found


def not_run(summary: Summary) -> str:
    """Say which controls were not run, why, and how to run them; nothing where all were."""
    reasons: dict[str, list[str]] = {}
    for control in controls_of(summary):
        if control.arm is None:
            reasons.setdefault(control.why, []).append(control.what)
    return "; ".join(f"{' and '.join(whats)}: {why}" for why, whats in reasons.items())
