"""What the cells of a matrix say together: savings of the headline's arm, cell by cell and pooled.

A cell's figures and verdicts are those of its own summary (:mod:`kdfed.records.between` for a rival that is
not its baseline); Holm's correction holds within a cell. What is pooled has an interval of its own
(:mod:`kdfed.pooled`) and no p-value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import median
from typing import Any, NamedTuple

from kdfed.pooled import Pooled, log_ratios, pool
from kdfed.records.between import compare_arms
from kdfed.savings import FEWEST
from simulations.matrix.records import HeadlineRecord, RecordedCell, RecordedMatrix
from simulations.report.counted import arms_of, ceiling_of, is_few
from simulations.report.words import interval, plural, signed, target_words, whole

Entry = Mapping[str, Any]
"""Like one of ``comparisons`` in ``summary.json``, by exchanges."""


def rivals(headline: HeadlineRecord) -> list[str]:
    """Return what the headline's arm is compared with: one sentence each."""
    return [headline.baseline, *([] if headline.beside is None else [headline.beside])]


def has_both(cell: RecordedCell, arm: str, rival: str) -> bool:
    """Tell whether two arms of a cell were evaluated."""
    return {arm, rival} <= set(arms_of(cell.summary))


@lru_cache(maxsize=1000)
def entries(cell: RecordedCell, arm: str, rival: str) -> dict[str, Entry]:
    """Return what an arm saved of exchanges against another one, by target; nothing where one is missing."""
    if not has_both(cell, arm, rival):
        return {}
    own = {
        entry["target"]: entry
        for entry in cell.summary["comparisons"]
        if (entry["arm"], entry["baseline"], entry["cost"]) == (arm, rival, "exchanges")
    }
    return own or {entry["target"]: entry for entry in compare_arms(cell.summary, rival, arm, "exchanges")}


def targets_of(matrix: RecordedMatrix) -> list[str]:
    """Return every target of a cell, in the order in which cells name them."""
    return list(dict.fromkeys(target for cell in matrix.cells for target in cell.summary["targets"]))


# ----------------------------------------------------------------------------- pooled


class Group(NamedTuple):
    """Cells that are pooled.

    Parameters
    ----------
    title
        Such as ``held-out cells``.
    cells
        Which.
    """

    title: str
    cells: Sequence[RecordedCell]


def groups(matrix: RecordedMatrix, target: str) -> list[Group]:
    """Return what is pooled at a target: the cells of the sentence first."""
    cells, aim = matrix.cells, matrix.headline.aims.get(target)
    held = [cell for cell in cells if cell.held_out]
    found = [Group("all cells", cells)]
    if held:
        found = [Group("held-out cells", held), *found]
        found.append(Group("cells that were tuned on", [cell for cell in cells if not cell.held_out]))
    if aim is not None:
        words = f"whose ceiling allows {aim:g}%"
        found += [Group(f"{one.title} {words}", _allowing(one.cells, target, aim)) for one in found]
    frames = list(dict.fromkeys(cell.frame for cell in cells if cell.frame))
    if len(frames) > 1:
        found += [
            Group(f"frame {frame}", [cell for cell in cells if cell.frame == frame]) for frame in frames
        ]
    return [group for group in found if group.cells]


def _allowing(cells: Sequence[RecordedCell], target: str, aim: float) -> list[RecordedCell]:
    ceilings = [(cell, ceiling_of(cell.summary, target)) for cell in cells]
    return [cell for cell, ceiling in ceilings if ceiling is not None and ceiling >= aim]


class PooledSaving(NamedTuple):
    """What an arm saved over a group of cells at one target.

    Parameters
    ----------
    title, target
        Of the group, and where.
    cells
        How many of the group have both arms and the target.
    figure, interval
        ``31%`` and ``[20, 40]``; a dash, and nothing.
    middle
        The median of the cells' medians: an infinity has a place in it.
    verdict
        ``saves``, ``costs more`` or ``undecided``, by the interval; nothing where there is none.
    why
        Why there is no figure, or no interval.
    saved
        The figure as a number; None where there is none.
    """

    title: str
    target: str
    cells: int
    figure: str
    interval: str
    middle: str
    verdict: str
    why: str
    saved: float | None


def pooled(group: Group, arm: str, rival: str, target: str) -> PooledSaving | None:
    """Pool what an arm saved against another one; None where no cell of the group has both and the target."""
    told = [(cell, entries(cell, arm, rival)) for cell in group.cells]
    members = [(cell, own[target]) for cell, own in told if target in own]
    if not members:
        return None
    ratios = [
        [] if entry["saved_percent"] is None else list(_ratios(cell, entry).values())
        for cell, entry in members
    ]
    found = pool(ratios)
    figure, ends, verdict = "–", "", ""
    saved = None if found.log_ratio is None else _percent(found.log_ratio)
    if saved is not None:
        figure = f"{whole(saved)}%"
    if found.low is not None and found.high is not None:
        low = None if math.isinf(found.high) else _percent(found.high)
        ends = interval({"low": low, "high": _percent(found.low)})
        verdict = "saves" if found.high < 0 else "costs more" if found.low > 0 else "undecided"
    return PooledSaving(
        *(group.title, target, len(members), figure, ends),
        *(_middle(found, arm, rival), verdict, _why(found, members, ratios), saved),
    )


def _ratios(cell: RecordedCell, entry: Entry) -> dict[int, float]:
    return log_ratios(cell.summary, *(entry[key] for key in ("baseline", "arm", "target", "cost")))


def _percent(log_ratio: float) -> float:
    return -100 * math.expm1(log_ratio)


def _middle(found: Pooled, arm: str, rival: str) -> str:
    known = [one for one in found.medians if not math.isnan(one)]
    if not known:
        return "–"
    middle = median(known) if all(map(math.isfinite, known)) else sorted(known)[len(known) // 2]
    if math.isinf(middle):
        return f"only {rival if middle > 0 else arm} gets there"
    return f"{whole(_percent(middle))}%"


def _why(
    found: Pooled, members: Sequence[tuple[RecordedCell, Entry]], ratios: Sequence[Sequence[float]]
) -> str:
    if found.log_ratio is not None:
        few = [cell.name for (cell, _), own in zip(members, ratios, strict=True) if is_few(len(own))]
        return f"no interval, because of fewer than {FEWEST} seeds in {', '.join(few)}" if few else ""
    told = [
        f"{signed(cell.summary, entry)[0]} in {cell.name}"
        for (cell, entry), middle in zip(members, found.medians, strict=True)
        if not math.isfinite(middle)
    ]
    return f"no figure, because a median is no number: {'; '.join(told)}"


@lru_cache(maxsize=8)
def every_pooled(matrix: RecordedMatrix, rival: str) -> Sequence[PooledSaving]:
    """Return every group at every target, against one rival; the groups of :func:`groups` in their order."""
    arm = matrix.headline.arm
    found = [
        pooled(group, arm, rival, target) for target in targets_of(matrix) for group in groups(matrix, target)
    ]
    return [one for one in found if one is not None]


# ----------------------------------------------------------------------------- the sentences


class Sentence(NamedTuple):
    """One sentence, what to know about it, and its verdict, which may be empty."""

    text: str
    note: str
    verdict: str


def sentences(matrix: RecordedMatrix, rival: str) -> list[Sentence]:
    """Say what the headline's arm saves against a rival, one a target, over the first group there is."""
    by_target: dict[str, list[PooledSaving]] = {}
    for one in every_pooled(matrix, rival):
        by_target.setdefault(one.target, []).append(one)
    return [
        Sentence(_sentence(matrix.headline.arm, rival, first), _note(first, others), first.verdict)
        for first, *others in by_target.values()
    ]


def _note(first: PooledSaving, others: Sequence[PooledSaving]) -> str:
    """Say the verdict of the first group, and what was saved over all cells where that is another group."""
    why = first.why or f"over these cells: {first.verdict}"
    said = [f"{why[:1].upper()}{why[1:]}."]
    return " ".join(said + [_words(one) for one in others if one.title.startswith("all cells")])


def _words(one: PooledSaving) -> str:
    """Say what was saved over a group: the figure, its verdict, or why there is none."""
    figure = f"{one.figure} {one.interval}".strip()
    told = f", {one.verdict}" if one.verdict else f" ({one.why})" if one.why else ""
    return f"{one.title[:1].upper()}{one.title[1:]} ({one.cells}): {figure}{told}."


def _sentence(arm: str, rival: str, one: PooledSaving) -> str:
    over = f"over {plural(one.cells, one.title.removesuffix('s').removeprefix('all '))}"
    goal, ends = f"At {target_words(one.target)}, ", f" {one.interval}" if one.interval else ""
    if one.saved is None:
        return f"{goal}there is no figure for {arm} against {rival}, {over}"
    if one.saved < 0 and whole(one.saved) != "0":
        more = f"{whole(-one.saved)}% more exchanges than {rival}"
        return f"{goal}{arm} needs {more} (saved: {one.figure}{ends}), {over}"
    return f"{goal}{arm} saves {one.figure}{ends} of the exchanges against {rival}, {over}"


def verdict_counts(matrix: RecordedMatrix, rival: str) -> dict[str, int]:
    """Count the verdicts of the headline's arm over cells and targets."""
    found = [
        e["verdict"] for cell in matrix.cells for e in entries(cell, matrix.headline.arm, rival).values()
    ]
    return {name: found.count(name) for name in ("saves", "does-not-lose", "undecided")} | {
        "none": found.count(None)
    }
