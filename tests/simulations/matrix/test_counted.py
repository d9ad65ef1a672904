"""What cells say together, on worked curves: hits in given rounds, an exchange more for teachers."""

from __future__ import annotations

import pytest

from simulations.matrix.counted import entries, every_pooled, groups, sentences, verdict_counts
from simulations.matrix.tables import matrix_tables
from tests.simulations.matrix.matrices import shown

SIX = {"cold": [10] * 6, "solved": [6] * 6, "warm": [4] * 6}
SEVEN = {"cold": [10] * 7, "solved": [8] * 7, "warm": [1] * 7}
HEAD = {"arm": "warm", "baseline": "cold", "beside": "solved"}


def pooled_at(matrix, rival, target="0.8"):
    return {one.title: one for one in every_pooled(matrix, rival) if one.target == target}


def test_cells_are_pooled_with_equal_weights():
    """Warm pays 5 of 10 and 2 of 10: the ratios' geometric mean is sqrt(0.5 * 0.2) = 0.316."""
    matrix = shown({"a": SIX, "b": SEVEN}, headline=HEAD)
    one = pooled_at(matrix, "cold")["all cells"]
    assert (one.figure, one.interval, one.cells, one.verdict) == ("68%", "[68, 68]", 2, "saves")
    assert one.saved == pytest.approx(100 * (1 - 0.1**0.5))


def test_the_second_sentence_compares_two_arms_of_which_neither_is_the_baseline():
    """Warm pays 5 of 6 and 2 of 8: the geometric mean is sqrt(5 / 6 * 2 / 8) = 0.456."""
    matrix = shown({"a": SIX, "b": SEVEN}, headline=HEAD)
    first, _ = sentences(matrix, "solved")
    assert first.text == "At 80%, warm saves 54% [54, 54] of the exchanges against solved, over 2 cells"
    assert first.verdict == "saves"
    assert entries(matrix.cells[0], "warm", "solved")["0.8"]["saved_percent"]["median"] == pytest.approx(
        100 / 6
    )


def test_held_out_cells_come_first_and_are_pooled_apart():
    matrix = shown({"a": SIX, "b": SEVEN}, headline=HEAD, held_out=["b"])
    found = pooled_at(matrix, "cold")
    assert {title: one.figure for title, one in found.items()} == {
        "held-out cells": "80%",
        "all cells": "68%",
        "cells that were tuned on": "50%",
    }
    sentence = sentences(matrix, "cold")[0]
    assert sentence.text.endswith("saves 80% [80, 80] of the exchanges against cold, over 1 held-out cell")
    assert sentence.note == "Over these cells: saves. All cells (2): 68% [68, 68], saves."


def test_cells_whose_ceiling_allows_the_aim_are_pooled_apart():
    """Cold needs 10 exchanges in one cell and 2 in the other: one exchange saves 90% and 50%."""
    low = {"cold": [2] * 6, "warm": [1] * 6}
    headline = {"arm": "warm", "baseline": "cold", "aims": {"0.8": 60.0}}
    matrix = shown({"a": SIX, "b": low}, headline=headline)
    found = pooled_at(matrix, "cold")
    assert found["all cells whose ceiling allows 60%"].cells == 1
    assert found["all cells whose ceiling allows 60%"].figure == "50%"
    assert found["all cells"].cells == 2
    assert [group.title for group in groups(matrix, "99%-of-converged")] == ["all cells"]


def test_frames_are_pooled_apart_where_there_are_several():
    matrix = shown({"a": SIX, "b": SEVEN}, headline=HEAD, frames={"a": "x", "b": "y"})
    assert {"frame x", "frame y"} < set(pooled_at(matrix, "cold"))


def test_a_cell_in_which_the_arm_misses_leaves_no_figure_and_is_named():
    """Its log-ratio is infinite: no mean holds it, but the middle of three cells does."""
    never = {"cold": [10] * 6, "warm": [None] * 6}
    matrix = shown({"a": SIX, "b": SEVEN, "c": never}, headline=HEAD)
    one = pooled_at(matrix, "cold")["all cells"]
    assert (one.figure, one.middle, one.saved) == ("–", "50%", None)
    assert one.why == "no figure, because a median is no number: warm never gets there in c"
    assert (
        sentences(matrix, "cold")[0].text == "At 80%, there is no figure for warm against cold, over 3 cells"
    )


def test_few_seeds_have_no_interval_and_the_cells_are_named():
    few = {"cold": [10, 10], "warm": [4, 4]}
    one = pooled_at(shown({"a": SIX, "b": few}, headline=HEAD), "cold")["all cells"]
    assert (one.figure, one.interval, one.verdict) == ("50%", "", "")
    assert one.why == "no interval, because of fewer than 6 seeds in b"


def test_an_arm_that_costs_more_is_said_to():
    dear = {"cold": [4] * 6, "warm": [7] * 6}
    (sentence, *_) = sentences(shown({"a": dear}, headline=HEAD | {"beside": None}), "cold")
    assert (
        "warm needs 100% more exchanges than cold (saved: −100% [−100, −100]), over 1 cell" in sentence.text
    )
    assert sentence.verdict == "costs more"


def test_cells_without_one_of_the_arms_stay_out_and_verdicts_are_counted():
    """Six seeds that agree have p = 0.031, which Holm's correction over two targets does not let pass."""
    matrix = shown({"a": SIX, "b": {"cold": [10] * 6, "warm": [4] * 6}}, headline=HEAD)
    assert pooled_at(matrix, "solved")["all cells"].cells == 1
    assert pooled_at(matrix, "cold")["all cells"].cells == 2
    none = {"saves": 0, "undecided": 0, "none": 0}
    assert verdict_counts(matrix, "cold") == {**none, "does-not-lose": 4}
    assert verdict_counts(matrix, "solved") == {**none, "does-not-lose": 2}


def test_the_terminal_shows_cells_and_what_is_pooled_for_each_rival():
    matrix = shown({"a": SIX, "b": SEVEN}, headline=HEAD, held_out=["b"])
    cold, pooled, solved, _ = matrix_tables(matrix)
    assert list(cold.columns[0].cells) == ["a", "b (held out)"]
    assert list(cold.columns[1].cells) == [
        "50% [50, 50]\nof 90%, does not lose",
        "80% [80, 80]\nof 90%, does not lose",
    ]
    assert list(pooled.columns[3].cells)[:3] == ["80%", "68%", "50%"]
    assert next(iter(solved.columns[1].cells)) == "17% [17, 17]\ndoes not lose"
