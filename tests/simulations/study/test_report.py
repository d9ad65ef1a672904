"""The study's page says where tuned KD is not ahead, and why."""

from __future__ import annotations

from typing import Any

from simulations.study.report import _against


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


def _page(tuned: float, rival: float, grid: dict[tuple[float, float], float]) -> str:
    cells = [
        _row(method, gain, seed) for seed in (0, 1) for method, gain in (("tuned", tuned), ("mutual", rival))
    ]
    tried = [_row("vanilla", gain, seed, *pair) for seed in (0, 1) for pair, gain in grid.items()]
    return _against(cells, tried, "tuned", ("vanilla", "mutual"))


def test_nothing_is_explained_where_tuned_kd_is_ahead() -> None:
    page = _page(0.5, 0.25, {(1.0, 0.1): 0.5, (4.0, 0.5): 0.25})
    assert "tuned is ahead" in page
    assert "+100%" in page
    assert "best" not in page


def test_a_rival_that_no_pair_reaches_is_named_with_the_best_pair() -> None:
    page = _page(0.25, 0.5, {(1.0, 0.1): 0.375, (4.0, 0.5): 0.25})
    assert "tuned is behind" in page
    assert "no pair reaches mutual, which trains the teachers too" in page
    assert "(best: T = 1, w = 0.1, +37.5, at the grid's edge)" in page


def test_a_search_that_chose_badly_is_told_from_a_grid_that_has_nothing_better() -> None:
    grid = {(t, w): 0.125 for t in (1.0, 2.0, 4.0) for w in (0.1, 0.5, 1.0)} | {(2.0, 0.5): 0.75}
    page = _page(0.25, 0.5, grid)
    assert "validation chose other pairs than the best (T = 2, w = 0.5, +75.0)" in page
