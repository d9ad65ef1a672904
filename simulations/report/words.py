"""What pages and tables say: numbers, savings and comparisons in words.

Fewer than six seeds give *points*, one figure a seed, and no interval. A miss of one side is an infinity: it
is said in words, never as a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdfed.paying import after_exchange, before_exchange
from kdfed.savings import FEWEST
from simulations.report.counted import (
    Summary,
    comparison_of,
    is_few,
    median,
    ratios_of,
    spent,
    verdicts,
)

MINUS, INFINITE = "−", "∞"
VERDICTS = {"saves": "saves", "does-not-lose": "does not lose", "undecided": "undecided"}
"""A verdict in ``summary.json`` -> what people read."""


def percent(value: float) -> str:
    """Say a share in percent, one digit: never −0.0%."""
    text = f"{100 * abs(value):.1f}%"
    return f"{MINUS}{text}" if value < 0 and text != "0.0%" else text


def number(value: float) -> str:
    """Say a count, or the median of counts: ``1,204``, ``8.5``."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:,.1f}"


def plural(count: int, noun: str) -> str:
    """Say how many: ``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def sunk_words(summary: Mapping[str, Any]) -> str:
    """Say which arms begin with teachers that existed; empty where none does."""
    arms = [entry["arm"] for entry in summary.get("sunk", ())]
    if not arms:
        return ""
    return (
        f"The teachers of {' and '.join(arms)} existed already: what it cost to train and collect them is "
        "sunk, and stands in no figure."
    )


def recipe_words(summary: Mapping[str, Any]) -> str:
    """Say why arms with ``start: recipe`` are what they are; empty where there is none."""
    told = [f"{arm} is the recipe of kdfed: {why}." for arm, why in summary.get("recipes", {}).items()]
    return " ".join(told)


def paying_words(summary: Mapping[str, Any]) -> str:
    """Say of arms that start with a head in closed form whether that was to be expected to pay."""
    told = []
    starts = [refit for refit in summary.get("refits", ()) if refit["at"] == 0 and refit.get("features")]
    for arm in dict.fromkeys(refit["arm"] for refit in starts):
        own = [refit for refit in starts if refit["arm"] == arm]
        before = before_exchange(own[0]["features"], pretrained=own[0]["pretrained"])
        words = f"{arm} is {'' if before.pays else 'not '}expected to pay: {before.why}"
        shares = [refit["explained"] for refit in own if refit.get("explained") is not None]
        if shares:
            after = after_exchange(min(shares))
            words += f"; after its exchange: {'go on from it' if after.pays else 'start cold'}, {after.why}"
        told.append(f"{words}.")
    return " ".join(told)


def target_words(target: str) -> str:
    """Say a target as people do: ``90%``, ``90% of converged``, ``90% of the gain``."""
    if "%-of-" in target:
        share, what = target.split("%-of-")
        return f"{share}% of {'the gain' if what == 'gain' else what}"
    return f"{100 * float(target):g}%"


def costs(values: Sequence[float], write: Callable[[float], str] = number, missed: str = "missed") -> str:
    """Say what something cost: one figure a seed of few seeds, else the median; ``inf`` is a miss."""
    if not values:
        return "–"
    shown = sorted(values) if is_few(len(values)) else [median(values)]
    if all(map(math.isinf, shown)):
        return missed if is_few(len(values)) or all(map(math.isinf, values)) else f"{missed} in most seeds"
    return ", ".join(missed if math.isinf(value) else write(value) for value in shown)


# ----------------------------------------------------------------------------- one saving


@dataclass(frozen=True)
class Saving:
    """One comparison in words.

    Parameters
    ----------
    figure
        Such as ``66% fewer``; of few seeds ``43, 51, 62% fewer``.
    interval
        Such as ``[52, 80]``, of the same figure; empty for points.
    others
        Seeds without a number, such as ``only warm gets there in 1 seed``; may be empty.
    tone
        ``good`` where the verdict is that it saves, ``bad`` where the whole interval costs more, else
        ``none``.
    """

    figure: str
    interval: str
    others: str
    tone: str


def saving(summary: Summary, comparison: Mapping[str, Any], fewer: str = "fewer") -> Saving:
    """Put ``saved_percent`` into words; what costs more is said to cost more."""
    saved, pairs = comparison["saved_percent"], comparison["pairs"]
    words = _without_number(comparison)
    if words:
        return Saving(words, "", "", "none")
    if is_few(pairs):
        figures, others = _finite(summary, comparison)
        if not figures:
            return Saving("; ".join(others) or "–", "", "", "none")
        return Saving(_signed(figures, fewer), "", "; ".join(others), "none")
    middle, high = saved["median"], saved["high"]
    tone = "good" if comparison["verdict"] == "saves" else "bad" if high is not None and high < 0 else "none"
    return Saving(_signed([middle], fewer), interval(saved, more=middle <= -0.5), "", tone)


def signed(summary: Summary, comparison: Mapping[str, Any]) -> tuple[str, str]:
    """Return what was saved and its interval, for a column of savings; what costs more is below 0.

    Returns
    -------
    tuple of str
        ``62%`` and ``[43, 70]``; of few seeds ``43, 51, 62%`` and nothing; or words, and nothing.
    """
    saved, pairs = comparison["saved_percent"], comparison["pairs"]
    words = _without_number(comparison)
    if words:
        return words, ""
    if is_few(pairs):
        figures, others = _finite(summary, comparison)
        return "; ".join([f"{', '.join(map(whole, figures))}%" if figures else "", *others]).strip("; "), ""
    return f"{whole(saved['median'])}%", interval(saved)


def _without_number(comparison: Mapping[str, Any]) -> str:
    """Say what cannot be put into a number, or return nothing where it can be."""
    saved, pairs, missed = comparison["saved_percent"], comparison["pairs"], comparison["censored"]
    arm, baseline = comparison["arm"], comparison["baseline"]
    if pairs == 0:
        return "solved without federation" if comparison["without_federation"] else "–"
    if missed["both"] == pairs:
        return "neither gets there"
    if saved is None:
        return f"{baseline} pays nothing"
    if missed["baseline"] and missed["baseline"] + missed["both"] == pairs:
        return f"only {arm} gets there"
    if missed["arm"] and missed["arm"] + missed["both"] == pairs:
        return f"{arm} never gets there"
    if missed["baseline"] + missed["arm"] + missed["both"] == pairs and missed["baseline"] == missed["arm"]:
        return "no seed in which both get there"
    if is_few(pairs):
        return ""
    if saved["median"] is None:
        return f"{arm} misses it in {missed['arm'] + missed['both']} of {pairs} seeds"
    if saved["median"] >= 100 and missed["baseline"]:
        return f"only {arm} gets there in {missed['baseline']} of {pairs} seeds"
    return ""


def _finite(summary: Summary, comparison: Mapping[str, Any]) -> tuple[list[float], list[str]]:
    """Return percent saved of each seed that has a number, lowest first, and the other seeds in words."""
    ratios, arm = list(ratios_of(summary, comparison).values()), comparison["arm"]
    missed = comparison["censored"]
    others = [
        f"{words} in {plural(count, 'seed')}"
        for count, words in (
            (missed["baseline"], f"only {arm} gets there"),
            (missed["arm"], f"{arm} misses it"),
            (missed["both"], "neither gets there"),
        )
        if count
    ]
    nothing = [100.0] * (ratios.count(-math.inf) - missed["baseline"])  # a cost of 0 that was a hit
    return sorted([100 * -math.expm1(d) for d in ratios if math.isfinite(d)] + nothing), others


def _signed(figures: Sequence[float], fewer: str) -> str:
    """Say figures as fewer, or as more where none of them saves."""
    if all(whole(figure) == "0" for figure in figures):
        return "no difference"
    if all(figure < 0.5 for figure in figures):
        return f"{', '.join(whole(-figure) for figure in reversed(figures))}% more"
    return f"{', '.join(map(whole, figures))}% {fewer}"


def interval(saved: Mapping[str, float | None], more: bool = False) -> str:
    """Say the interval of percent saved, or of percent more; nothing where there is none.

    Examples
    --------
    >>> interval({"low": None, "high": 62.4}), interval({"low": -40.0, "high": -12.0}, more=True)
    ('[−∞, 62]', '[12, 40]')
    """
    low, high = saved["low"], saved["high"]
    if high is None:
        return ""
    if more:
        return f"[{whole(-high)}, {INFINITE if low is None else whole(-low)}]"
    return f"[{MINUS + INFINITE if low is None else whole(low)}, {whole(high)}]"


def whole(value: float) -> str:
    """Say percent without digits: never −0, and 100 only where nothing at all was spent."""
    if 99.5 <= value < 100:
        return ">99"
    rounded = round(value)
    return f"{MINUS if rounded < 0 else ''}{abs(rounded):,}"


# ----------------------------------------------------------------------------- one cell


def verdict(comparison: Mapping[str, Any]) -> str:
    """Say the verdict, or nothing where there is none."""
    return VERDICTS.get(comparison["verdict"], "")


def verdict_line(summary: Summary) -> str:
    """Say how many cells have which verdict, all three counted; a cell is an arm and a target."""
    counted, without = verdicts(summary)
    told = ", ".join(f"{words} {counted[name]}" for name, words in VERDICTS.items())
    few = f", none {without} (a verdict needs {FEWEST} seeds)" if without else ""
    return f"Verdicts by exchanges, an arm and a target each: {told}{few}."


def headline(summary: Summary, arm: str, target: str) -> tuple[str, str]:
    """Say in one sentence what an arm needed for a target, and in others what to know about it.

    Returns
    -------
    tuple of str
        The sentence; the notes, which may be empty.
    """
    comparison = comparison_of(summary, arm, target, "exchanges")
    baseline, goal = comparison["baseline"], target_words(target)
    most = plural(summary["horizon"]["rounds"], "round")
    missed, pairs = comparison["censored"], comparison["pairs"]
    seeds = ratios_of(summary, comparison)
    ours, theirs = (spent(summary, name, target, "exchanges", seeds) for name in (arm, baseline))
    we_did, they_did = (any(map(math.isfinite, paid)) for paid in (ours, theirs))
    if not ours and comparison["without_federation"]:
        sentence = f"{arm} starts at {goal} and needs no exchange: solved without federation"
    elif not ours:
        sentence = f"There is no seed in which both {arm} and {baseline} ran to the end"
    elif not we_did and not they_did:
        sentence = f"Neither {arm} nor {baseline} reached {goal} within {most}"
    elif not they_did:
        sentence = f"Only {arm} reached {goal}, {trips(ours)}; {baseline} never did within {most}"
    elif not we_did:
        sentence = f"{arm} never reached {goal} within {most}; {baseline} did {trips(theirs)}"
    else:
        middle = f" (medians of {plural(pairs, 'seed')})" if pairs > 1 else " (one seed)"
        sentence = f"{_reached(arm, ours, goal)}, {_reached(baseline, theirs)}{middle}"
    notes = [
        f"{words} in {count} of {plural(pairs, 'seed')}."
        for count, words in (
            (missed["baseline"], f"Only {arm} got there"),
            (missed["arm"], f"{arm} missed the target"),
            (missed["both"], "Neither got there"),
        )
        if 0 < count < pairs
    ]
    if comparison["without_federation"] and pairs:
        count = plural(comparison["without_federation"], "seed")
        notes.append(f"Left out: {count} in which {arm} needs no exchange, solved without federation.")
    if comparison["failed"]:
        count = plural(comparison["failed"], "seed")
        notes.append(f"Left out: {count} in which a run failed or ended before the horizon.")
    return sentence, " ".join(notes)


def _reached(arm: str, values: Sequence[float], goal: str = "") -> str:
    if math.isinf(median(values)):
        return f"{arm} missed {goal or 'it'} in {values.count(math.inf)} of {plural(len(values), 'seed')}"
    return f"{arm} reached {goal} {trips(values)}" if goal else f"{arm} in {number(median(values))}"


def trips(values: Sequence[float]) -> str:
    """Say in how many exchanges something was reached: the median, without misses where most are."""
    middle = median(values)
    if math.isinf(middle):
        middle = median([value for value in values if math.isfinite(value)])
    return f"in {number(middle)} exchange{'' if middle == 1 else 's'}"
