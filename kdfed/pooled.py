"""What an arm saves over several cells: equal weights, seeds resampled within cells.

A cell is one arm and target of one experiment: its log-ratios, one a seed, of the arm's cost over the
baseline's. With m_c the median of cell c of C, the pooled ratio is ``exp(sum(m_c) / C)``: every cell weighs
the same, however many seeds it has. The interval is that of the percentile bootstrap: the seeds of each cell
are drawn anew with replacement, the cells stay. It therefore speaks for these cells, and of no other data.

References
----------
Efron and Tibshirani, An Introduction to the Bootstrap, 1993: section 13.3 (the percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdfed.savings import FEWEST, Pair, billed

DRAWS, SEED = 10_000, 0
"""How often seeds are drawn anew, and where that generator starts."""


def log_ratios(
    summary: Mapping[str, Any], baseline: str, arm: str, target: str, cost: str
) -> dict[int, float]:
    """Return the log of the arm's cost over the baseline's, by seed.

    Parameters
    ----------
    summary
        What ``summary.json`` holds; its horizon and runs are read.
    baseline, arm, target
        What is compared with what, and where.
    cost
        As in ``comparisons``.

    Returns
    -------
    dict of int to float
        Pairs alone: seeds in which both ran to the horizon, or hit. ``inf`` where the arm alone missed,
        ``-inf`` where the baseline alone did (or the arm pays nothing), NaN where both did. Left out is a
        seed in which the arm needs no exchange, or the baseline's cost is 0.

    Examples
    --------
    >>> run = {"seed": 0, "target": "0.9", "target_accuracy": 0.9, "stopped": "horizon"}
    >>> runs = [
    ...     {"arm": "cold", "hit": {"round": 10, "exchanges": 10}, **run},
    ...     {"arm": "warm", "hit": {"round": 4, "exchanges": 5}, **run},
    ... ]
    >>> summary = {"horizon": {"rounds": 40}, "runs": runs}
    >>> round(log_ratios(summary, "cold", "warm", "0.9", "exchanges")[0], 3)
    -0.693
    """
    found = {}
    for seed, pair in pairs_between(summary, baseline, arm, target, cost).by_seed.items():
        if pair.baseline != 0:
            found[seed] = math.nan if pair.both_missed else pair.log_ratio
    return found


@dataclass(frozen=True)
class Pairs:
    """What two arms paid to reach one target.

    Parameters
    ----------
    by_seed
        Of the seeds in which both ran to the horizon, or hit.
    without_federation
        Seeds left out because the arm was there before its first exchange.
    failed
        Seeds left out because a run says nothing of the target; see :func:`is_open`.
    """

    by_seed: Mapping[int, Pair]
    without_federation: int
    failed: int


def pairs_between(summary: Mapping[str, Any], baseline: str, arm: str, target: str, cost: str) -> Pairs:
    """Pair the seeds of any two arms by one cost; see :func:`log_ratios`."""
    horizon = summary["horizon"]["rounds"]
    theirs, ours = (
        {
            run["seed"]: run["hit"]
            for run in summary["runs"]
            if (run["arm"], run["target"]) == (name, target) and not is_open(run, horizon)
        }
        for name in (baseline, arm)
    )
    pairs: dict[int, Pair] = {}
    free = 0
    for seed in theirs:
        if seed not in ours:
            continue
        if ours[seed] is not None and ours[seed]["exchanges"] == 0:
            free += 1
            continue
        hits = theirs[seed], ours[seed]
        pairs[seed] = Pair(*(None if hit is None else billed(hit, cost) for hit in hits))
    return Pairs(pairs, free, len(summary.get("seeds", theirs)) - len(pairs) - free)


def is_open(run: Mapping[str, Any], horizon: int) -> bool:
    """Tell whether a run says nothing of its target.

    It has none, because its baseline did not finish; or it failed, or ended before the horizon without a hit.
    """
    if run["target_accuracy"] is None or run["stopped"] in ("failed", "interrupted"):
        return True
    return run["hit"] is None and bool(run["totals"]["round"] < horizon)


@dataclass(frozen=True)
class Pooled:
    """One figure for several cells.

    Parameters
    ----------
    log_ratio
        Mean of the cells' median log-ratios; None where a cell has none, or an infinite one.
    low, high
        The 95% interval of it; ``-inf`` and ``inf`` are ends that are open. None where there is no figure,
        or a cell has fewer than six pairs.
    medians
        Of the cells; NaN where there is none.
    """

    log_ratio: float | None
    low: float | None
    high: float | None
    medians: tuple[float, ...]


def pool(cells: Sequence[Sequence[float]], draws: int = DRAWS, seed: int = SEED) -> Pooled:
    """Pool cells with equal weights.

    Parameters
    ----------
    cells
        For each cell its log-ratios, one a pair; infinities for misses of one side, NaN where both missed.
    draws
        How often the seeds of all cells are drawn anew.
    seed
        Of the generator.

    Returns
    -------
    Pooled
        A resample without a median, or whose medians are infinities of both signs, widens both ends. The
        interval holds its figure: with many cells nearly every resample may have an infinite median in one.

    Examples
    --------
    >>> pool([[-0.5] * 6, [-1.5] * 7])
    Pooled(log_ratio=-1.0, low=-1.0, high=-1.0, medians=(-0.5, -1.5))
    """
    medians = tuple(
        float(_medians(np.asarray([cell], dtype=float))[0]) if len(cell) else math.nan for cell in cells
    )
    if not cells or not all(map(math.isfinite, medians)):
        return Pooled(None, None, None, medians)
    figure = math.fsum(medians) / len(medians)
    if min(map(len, cells)) < FEWEST:
        return Pooled(figure, None, None, medians)
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    with np.errstate(invalid="ignore"):  # infinities of both signs: NaN, which widens both ends
        for cell in cells:
            drawn = generator.integers(0, len(cell), (draws, len(cell)))
            total += _medians(np.asarray(cell, dtype=float)[drawn])
    means = total / len(cells)
    low, high = (np.sort(np.where(np.isnan(means), end, means)) for end in (-np.inf, np.inf))
    left_out = int(0.025 * draws)
    ends = float(low[left_out]), float(high[draws - 1 - left_out])
    return Pooled(figure, min(ends[0], figure), max(ends[1], figure), medians)


def _medians(rows: np.ndarray) -> np.ndarray:
    """Return the median of each row, NaN left out; NaN where nothing is left.

    Beside an infinity it is the larger of the middle two, as in :mod:`kdfed.savings`.
    """
    ordered = np.sort(rows, axis=1)  # NaN come last
    known = np.count_nonzero(~np.isnan(rows), axis=1)
    row = np.arange(len(rows))
    below, above = (
        ordered[row, np.maximum(known - 1, 0) // 2],
        ordered[row, np.minimum(known // 2, rows.shape[1] - 1)],
    )
    with np.errstate(invalid="ignore"):
        middle: np.ndarray = np.where(np.isfinite(below) & np.isfinite(above), (below + above) / 2, above)
    return middle
