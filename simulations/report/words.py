"""What the page says: numbers and comparisons in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdfed.config import Experiment
from simulations.report.figures import target_words


def percent(value: float) -> str:
    """Say a share in [0, 1] in percent, one digit."""
    return f"{100 * value:.1f}%"


def number(value: float) -> str:
    """Say a count, or the mean of counts: ``1,204``, ``8.7``."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:,.1f}"


def plural(count: int, noun: str) -> str:
    """Say how many: ``1 seed``, ``3 seeds``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class Saving:
    """One comparison in words.

    Parameters
    ----------
    figure
        Such as ``66% fewer``.
    interval
        Such as ``[52, 80]``, of the same figure (of what it costs more, if it does); empty for a single pair.
    tone
        ``good``, ``bad`` or ``none``: whether the whole interval lies on one side of nothing saved.
    """

    figure: str
    interval: str
    tone: str


def saving(comparison: Mapping[str, Any], fewer: str = "fewer") -> Saving:
    """Put ``saved_percent`` into words; what costs more is said to cost more."""
    saved = comparison["saved_percent"]
    if saved is None:
        return Saving("–", "", "none")
    mean, low, high = saved["mean"], saved["low"], saved["high"]
    if abs(mean) < 0.5:
        words = "no saving"
    elif mean > 0:
        words = f"{mean:.0f}% {fewer}"
    else:
        words = f"{-mean:,.0f}% more"
    bounds = (low, high) if mean >= 0 or words == "no saving" else (-high, -low)
    interval = "[{}, {}]".format(*map(_whole, bounds)) if comparison["pairs"] > 1 else ""
    tone = "good" if low > 0 and mean >= 0.5 else "bad" if high < 0 and mean <= -0.5 else "none"
    return Saving(words, interval, tone)


def _whole(value: float) -> str:
    return f"{round(value):,}".replace("-", "−")


def headline(summary: Mapping[str, Any], experiment: Experiment, arm: str, target: str) -> tuple[str, str]:
    """Say in one sentence what an arm saved on its way to a target, and in others what to know about it.

    Returns
    -------
    tuple of str
        The sentence; the notes, which may be empty.
    """
    comparison = comparison_of(summary, arm, target, "exchanges")
    baseline, goal = comparison["baseline"], target_words(target)
    most = plural(experiment.rounds.horizon, "round")
    ours, theirs = (_exchanges(summary, name, target) for name in (arm, baseline))
    missed = comparison["censored"]
    pairs = comparison["pairs"]
    if pairs == 0:
        sentence = _without_pairs(arm, baseline, goal, most, ours, missed)
        missed = {**missed, "baseline": 0, "both": missed["both"] if missed["baseline"] else 0}
    elif missed["arm"] == pairs:
        sentence = (
            f"{arm} missed {goal} within {most}, and {baseline} reached it after "
            f"{_trips(_mean(theirs))}: nothing was saved"
        )
    elif comparison["saved_percent"] is None:
        sentence = f"{baseline} starts at {goal} already: there was nothing to save"
    else:
        sentence = _saved(comparison, arm, baseline, goal, _both(ours, theirs))
    notes = []
    if missed["arm"]:
        notes.append(
            f"{arm} missed the target in {missed['arm']} of {plural(pairs, 'seed')}; a miss counts as "
            f"{plural(experiment.rounds.horizon + 1, 'round')} plus its teacher exchange."
        )
    if missed["baseline"]:
        notes.append(
            f"Left out: {plural(missed['baseline'], 'seed')} in which {arm} reached the target and "
            f"{baseline} did not."
        )
    if missed["both"]:
        notes.append(f"Left out: {plural(missed['both'], 'seed')} in which neither reached the target.")
    if comparison["failed"]:
        notes.append(f"Left out: {plural(comparison['failed'], 'seed')} in which a run failed.")
    return sentence, " ".join(notes)


def _saved(
    comparison: Mapping[str, Any], arm: str, baseline: str, goal: str, both: Sequence[tuple[int, int]]
) -> str:
    said, pairs = saving(comparison), comparison["pairs"]
    seeds = f"over {plural(pairs, 'seed')}" if pairs > 1 else "in one seed, which gives no interval"
    if said.figure == "no saving":
        amount = f"no saving {said.interval}".rstrip()
    else:
        amount = f"{said.figure} {said.interval}".rstrip()
    if comparison["censored"]["arm"]:
        return f"{arm} took {amount} exchanges to {goal}, counting misses, {seeds}".replace(
            "took no saving", "made no saving"
        )
    ours, theirs = _mean([pair[0] for pair in both]), _mean([pair[1] for pair in both])
    instead = (
        f"in {number(ours)} instead of {_trips(theirs)}"
        if number(ours) != number(theirs)
        else f"in {_trips(ours)}, as {baseline} did"
    )
    sentence = f"{arm} reached {goal} {instead}: {amount} {seeds}"
    if pairs > 1 and said.tone == "none":
        sentence += "; the interval leaves open whether anything was saved"
    return sentence


def _without_pairs(
    arm: str, baseline: str, goal: str, most: str, ours: Mapping[int, int], missed: Mapping[str, int]
) -> str:
    if missed["baseline"]:
        return (
            f"{arm} reached {goal} after {_trips(_mean(ours))}, and {baseline} never did within {most}: "
            "a saving that cannot be put into a number"
        )
    if missed["both"]:
        return f"Neither {arm} nor {baseline} reached {goal} within {most}"
    return f"There is no seed in which both {arm} and {baseline} were evaluated"


def comparison_of(summary: Mapping[str, Any], arm: str, target: str, cost: str) -> Mapping[str, Any]:
    """Return one entry of ``comparisons``."""
    wanted = (arm, target, cost)
    found: Mapping[str, Any] = next(
        entry for entry in summary["comparisons"] if (entry["arm"], entry["target"], entry["cost"]) == wanted
    )
    return found


def _exchanges(summary: Mapping[str, Any], arm: str, target: str) -> dict[int, int]:
    return {
        run["seed"]: run["exchanges_to_target"]
        for run in summary["runs"]
        if (run["arm"], run["target"]) == (arm, target) and run["exchanges_to_target"] is not None
    }


def _both(ours: Mapping[int, int], theirs: Mapping[int, int]) -> list[tuple[int, int]]:
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def _mean(values: Mapping[int, int] | Sequence[int]) -> float:
    numbers = list(values.values()) if isinstance(values, Mapping) else list(values)
    return sum(numbers) / len(numbers)


def _trips(value: float) -> str:
    return f"{number(value)} exchange{'' if value == 1 else 's'}"
