"""What a summary counts, for pages and tables alike: costs by seed, verdicts, convergence and controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from kdfed.convergence import CONVERGENCE, UNREACHABLE
from kdfed.pooled import is_open, log_ratios
from kdfed.savings import FEWEST, cost_of

Summary = Mapping[str, Any]
"""What ``summary.json`` holds."""

CONTROLS = {
    "server_alone": ("server", "server alone"),
    "server_start": ("server", "start from that model"),
    "averaged": ("averaged", "averaged teachers"),
    "longer": ("longer", "{baseline} with the teachers' steps"),
}
"""A control in ``summary.json`` -> its name under ``controls:`` in an experiment, and what it is."""


def is_few(seeds: int) -> bool:
    """Tell whether there are too few seeds for an interval."""
    return seeds < FEWEST


def median(values: Sequence[float]) -> float:
    """Return the median, a miss being ``inf``."""
    return float(statistics.median(values))


# ----------------------------------------------------------------------------- arms and cells


def arms_of(summary: Summary) -> list[str]:
    """Return the arms that were evaluated, in the experiment's order."""
    return list(dict.fromkeys(run["arm"] for run in summary["runs"]))


def baseline_of(summary: Summary) -> str:
    """Return the arm that others are compared with, whether it was evaluated or not."""
    compared = [entry["baseline"] for entry in summary["comparisons"]]
    return str(next(iter([*compared, *arms_of(summary)]), "baseline"))


def still_rising(summary: Summary) -> str:
    """Say that the baseline was not flat within the horizon, with what that means; empty where it was."""
    baseline = baseline_of(summary)
    flat = {run["seed"]: run["plateau"] for run in summary["runs"] if run["arm"] == baseline}
    rising = sum(found is None for found in flat.values())
    if not rising:
        return ""
    return (
        f"{baseline} was not flat within the horizon of {summary['horizon']['rounds']} rounds in {rising} of "
        f"{len(flat)} seeds: what it converges to, and every figure that rests on it, may change with a "
        "longer one."
    )


def control_arms(summary: Summary) -> set[str]:
    """Return the arms that are controls: they have a control's name, and no verdict."""
    judged = {entry["arm"] for entry in summary["comparisons"] if entry["verdict"] is not None}
    names = {name for key, (name, _) in CONTROLS.items() if summary["controls"][key]["arm"] == name}
    return names - judged


def cells_of(summary: Summary) -> list[tuple[str, str]]:
    """Return every arm and target that is compared with the baseline, controls left out."""
    controls = control_arms(summary)
    cells = dict.fromkeys((entry["arm"], entry["target"]) for entry in summary["comparisons"])
    return [(arm, target) for arm, target in cells if arm not in controls]


def comparison_of(summary: Summary, arm: str, target: str, cost: str) -> Mapping[str, Any]:
    """Return one entry of ``comparisons``."""
    wanted = (arm, target, cost)
    found: Mapping[str, Any] = next(
        entry for entry in summary["comparisons"] if (entry["arm"], entry["target"], entry["cost"]) == wanted
    )
    return found


def ratios_of(summary: Summary, comparison: Mapping[str, Any]) -> dict[int, float]:
    """Return the log-ratios of a comparison's pairs by seed; see :func:`kdfed.pooled.log_ratios`."""
    keys = ("baseline", "arm", "target", "cost")
    return log_ratios(summary, *(comparison[key] for key in keys))


def verdicts(summary: Summary) -> tuple[dict[str, int], int]:
    """Count the verdicts by exchanges over all cells, and the cells without one."""
    found = [comparison_of(summary, *cell, "exchanges")["verdict"] for cell in cells_of(summary)]
    return {name: found.count(name) for name in ("saves", "does-not-lose", "undecided")}, found.count(None)


# ----------------------------------------------------------------------------- costs and accuracies


def runs_to(summary: Summary, arm: str, target: str) -> list[Mapping[str, Any]]:
    """Return an arm's runs with one target, one a seed."""
    return [run for run in summary["runs"] if (run["arm"], run["target"]) == (arm, target)]


def spent(
    summary: Summary, arm: str, target: str, cost: str, seeds: Collection[int] | None = None
) -> list[float]:
    """Return what an arm paid for a target by seed, lowest first; ``inf`` is a miss.

    Parameters
    ----------
    summary
        What ``summary.json`` holds.
    arm, target, cost
        As in ``comparisons``.
    seeds
        Which. Default: all of which it is known.
    """
    return sorted(
        math.inf if run["hit"] is None else cost_of(run["hit"], cost)
        for run in runs_to(summary, arm, target)
        if not is_open(run, summary["horizon"]["rounds"]) and (seeds is None or run["seed"] in seeds)
    )


def level_of(summary: Summary, target: str) -> float | None:
    """Return the accuracy that a target means, the mean over seeds; of those in which it can be reached.

    None where that is all of them: what the baseline converges to, or gains, is not above 0.
    """
    levels = [run["target_accuracy"] for run in summary["runs"] if run["target"] == target]
    return _mean([level for level in levels if level != UNREACHABLE])


def converged(summary: Summary, arm: str) -> float | None:
    """Return the accuracy at which an arm's curves end, the mean over seeds."""
    return _mean([run["converged_accuracy"] for run in runs_to(summary, arm, summary["targets"][0])])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


class Convergence(NamedTuple):
    """How long an arm's curves rise; rounds by seed, ``inf`` where not within the horizon.

    Parameters
    ----------
    arm
        Which.
    rounds
        To 99% of the baseline's converged accuracy.
    plateau, half, double
        Where the curve goes flat, with the tolerance as it is, halved and doubled.
    accuracy
        At which it ends.
    """

    arm: str
    rounds: list[float]
    plateau: list[float]
    half: list[float]
    double: list[float]
    accuracy: float | None


def convergence_of(summary: Summary) -> list[Convergence]:
    """Return the convergence of every arm."""
    found = []
    for arm in arms_of(summary):
        runs = runs_to(summary, arm, summary["targets"][0])
        runs = [run for run in runs if run["stopped"] not in ("failed", "interrupted")]
        plateau, half, double = (
            [math.inf if run[key] is None else float(run[key]) for run in runs]
            for key in ("plateau", "plateau_half", "plateau_double")
        )
        rounds = spent(summary, arm, CONVERGENCE, "rounds")
        found.append(Convergence(arm, rounds, plateau, half, double, converged(summary, arm)))
    return found


# ----------------------------------------------------------------------------- controls


class Control(NamedTuple):
    """One control, run or not.

    Parameters
    ----------
    what
        What it is, in words.
    is_alone
        Whether it is a model that nobody federates.
    arm
        What it ran as; None when it was not run.
    why
        Why it was not.
    labels
        How many labels of the server its first model was fitted on, None if it was on none.
    start, converged, test
        Accuracies: of round 0, where the curve ends, on the test split; means over seeds.
    """

    what: str
    is_alone: bool
    arm: str | None
    why: str
    labels: int | None
    start: float | None
    converged: float | None
    test: float | None


def controls_of(summary: Summary) -> list[Control]:
    """Return all four controls, those that were not run included."""
    baseline, found = baseline_of(summary), []
    for key, (_, what) in CONTROLS.items():
        one = summary["controls"][key]
        accuracies = (one["start_accuracy"], one["converged_accuracy"], one["test_accuracy"])
        found.append(
            Control(
                *(what.format(baseline=baseline), key == "server_alone"),
                *(one["arm"], one["why"], one["labels"], *accuracies),
            )
        )
    return found


def ceiling_of(summary: Summary, target: str) -> float | None:
    """Return the percent of exchanges that an arm saves which needs a single one."""
    known = [
        entry["ceiling_percent"]
        for entry in summary["comparisons"]
        if (entry["target"], entry["cost"]) == (target, "exchanges") and entry["ceiling_percent"] is not None
    ]
    return max(known, default=None)
