"""The study's page says where tuned KD is not ahead, and why."""

from __future__ import annotations

from typing import Any

from kdfed.partitions import DirichletPartition
from simulations.experiments import FAMILIES
from simulations.study.report import _compare, _interval
from simulations.study.settings import study_type

STUDY = study_type(FAMILIES)(name="study", distributions={"skewed": DirichletPartition(alpha=0.1)})


def _row(
    method: str, gain: float, seed: int, temperature: float = 4.0, weight: float = 0.5
) -> dict[str, Any]:
    return {
        "distribution": "skewed",
        "method": method,
        "gain": gain,
        "seed": seed,
        "temperature": temperature,
        "weight": weight,
    }


def _told(
    tuned: float, rival: float, grid: dict[tuple[float, float], float], seeds: int = 6
) -> tuple[list[Any], list[tuple[str, str]]]:
    """Return the row of the only distribution, and why tuned KD is not ahead."""
    cells = [
        _row(method, gain, seed)
        for seed in range(seeds)
        for method, gain in (("tuned", tuned), ("mutual", rival))
    ]
    tried = [_row("vanilla", gain, seed, *pair) for seed in range(seeds) for pair, gain in grid.items()]
    found = _compare(STUDY, cells, tried, ("vanilla", "mutual"))
    assert found.table is not None
    (row,) = found.table.rows
    return list(row), found.reasons


def test_nothing_is_explained_where_tuned_kd_is_ahead() -> None:
    row, reasons = _told(0.5, 0.25, {(1.0, 0.1): 0.5, (4.0, 0.5): 0.25})
    assert row[-2:] == ["+100%", "tuned is ahead"]
    assert reasons == []


def test_a_rival_that_no_pair_reaches_is_named_with_the_best_pair() -> None:
    row, reasons = _told(0.25, 0.5, {(1.0, 0.1): 0.375, (4.0, 0.5): 0.25})
    assert row[-1] == "tuned is behind"
    why = (
        "no pair reaches mutual, which trains the teachers too (best: T = 1, w = 0.1, +37.5, at the grid's "
        "edge)"
    )
    assert reasons == [("skewed", why)]


def test_a_search_that_chose_badly_is_told_from_a_grid_that_has_nothing_better() -> None:
    grid = {(t, w): 0.125 for t in (1.0, 2.0, 4.0) for w in (0.1, 0.5, 1.0)} | {(2.0, 0.5): 0.75}
    _, reasons = _told(0.25, 0.5, grid)
    assert reasons == [("skewed", "validation chose other pairs than the best (T = 2, w = 0.5, +75.0)")]


def test_few_seeds_are_shown_one_by_one_without_an_interval_or_a_verdict() -> None:
    """Five gains of 1 to 5 points: their mean is 3."""
    row, _ = _told(0.5, 0.25, {(1.0, 0.1): 0.5, (4.0, 0.5): 0.25}, seeds=5)
    assert row[-1] == "none: 5 seeds"
    assert row[3] == "+50.0 (50.0, 50.0, 50.0, 50.0, 50.0)"
    assert _interval([0.05, 0.01, 0.02, 0.03, 0.04]) == "+3.0 (1.0, 2.0, 3.0, 4.0, 5.0)"


def test_six_seeds_have_an_interval() -> None:
    """Gains of 1 to 6 points: 3.5 +- 2.571 * 1.871 / sqrt(6) = 1.96."""
    assert _interval([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == "+3.5 [1.5, 5.5]"
