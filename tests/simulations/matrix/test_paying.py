"""The regret of what kdfed says, on worked curves."""

from __future__ import annotations

import pytest

from simulations.matrix.paying import regrets
from simulations.matrix.tables import regret_table
from tests.simulations.matrix.matrices import shown

HEAD = {"arm": "warm", "baseline": "cold"}


def matrix_with(cells, held_out=(), **refits):
    """Return a matrix whose cells say so of their heads: features, and what they explain."""
    matrix = shown(cells, headline=HEAD, held_out=list(held_out))
    for cell in matrix.cells:
        features, explained = refits[cell.name]
        cell.summary["refits"] = [
            {
                "arm": "warm",
                "seed": seed,
                "at": 0,
                "features": features,
                "pretrained": False,
                "explained": explained,
            }
            for seed in cell.summary["seeds"]
        ]
    return matrix


GOOD = {"cold": [10] * 6, "warm": [1] * 6}
BAD = {"cold": [3] * 6, "warm": [9] * 6}


def test_regret_is_what_a_policy_costs_beyond_the_better_start():
    """Warm pays 2 of 10 where it is good and 10 of 3 where it is not (an exchange more for its teachers).

    Always warm: 0 and 7; always cold: 8 and 0; advised by 128 and 8 features: 0 and 0; after the exchange,
    where the second head explains nothing: 0, and cold with an exchange that was paid for nothing.
    """
    matrix = matrix_with({"good": GOOD, "bad": BAD}, good=(128, 0.6), bad=(8, 0.0))
    (all_cells,) = regrets(matrix, "0.8")
    assert all_cells == ("2 all cells", pytest.approx(3.5), pytest.approx(4.0), 0.0, pytest.approx(0.5))


def test_held_out_cells_are_judged_apart_and_unknown_shares_leave_a_dash():
    matrix = matrix_with({"good": GOOD, "bad": BAD}, ["good"], good=(128, 0.6), bad=(128, None))
    held, everything = regrets(matrix, "0.8")
    assert held == ("1 held-out cells", 0.0, 8.0, 0.0, 0.0)
    assert everything.before == pytest.approx(3.5)
    assert everything.after is None
    table = regret_table(matrix)
    assert table is not None
    assert list(table.columns[-1].cells)[:2] == ["0.0", "–"]


def test_a_matrix_without_heads_has_no_such_table():
    assert regret_table(shown({"good": GOOD}, headline=HEAD)) is None
