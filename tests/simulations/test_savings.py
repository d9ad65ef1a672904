"""The table of savings, from summaries alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulations.savings import HEAD, POOLED_HEAD, main, savings_table
from tests.simulations.report.summaries import summary_of

NEVER = None


def tables(*summaries: dict[str, Any]) -> tuple[list[list[str]], list[list[str]], str]:
    """Return the rows at 80% of the first and of the second table, and all lines that are in none."""
    text = savings_table(summaries)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    second = next((n for n, row in enumerate(rows) if row == list(POOLED_HEAD)), len(rows))
    assert rows[0] == list(HEAD)
    others = "\n".join(line for line in text.splitlines() if "|" not in line)
    return (
        [row for row in rows[:second] if "0.8" in row],
        [row for row in rows[second:] if "0.8" in row],
        others,
    )


def test_few_seeds_are_points() -> None:
    """Warm needs 5 and 6 exchanges, cold 10 and 20: 50 and 70% saved; rounds 4 and 5: 60 and 75%."""
    (row,), pooled, _ = tables(summary_of({"cold": [10, 20], "warm": [4, 5]}))
    assert row == ["make-believe", "warm", "0.8", *["50, 70%"] * 4, "60, 75%", "93%", "–", "2", "0 / 0 / 0"]
    assert pooled == []


def test_more_seeds_have_an_interval_and_a_verdict() -> None:
    (row,), _, others = tables(summary_of({"cold": [10] * 7, "warm": [1, 2, 3, 4, 5, 6, 7]}))
    assert row[3:7] == ["50% [20, 80]"] * 4
    assert row[8:] == ["90%", "saves", "7", "0 / 0 / 0"]
    assert "saves 2, does not lose 0, undecided 0." in others


def test_misses_are_words_and_counted() -> None:
    (row,), _, _ = tables(summary_of({"cold": [NEVER, NEVER, 10], "warm": [4, NEVER, NEVER]}))
    assert row[3] == "no seed in which both get there"
    assert row[-1] == "1 / 1 / 1"


def test_a_control_stands_among_the_arms_and_is_not_judged() -> None:
    arms = {"cold": [10] * 7, "warm": [4] * 7, "server": [4] * 7}
    (warm, server), _, others = tables(summary_of(arms, controls=["server"]))
    assert (warm[9], server[1], server[9]) == ("saves", "server", "control")
    assert "saves 2, does not lose 0, undecided 0." in others


def test_the_horizon_the_labels_and_what_a_reader_must_know_are_told() -> None:
    _, _, others = tables(summary_of({"cold": [10], "warm": [4]}) | {"note": "Counted anew."})
    assert (
        "make-believe: 40 rounds (so the tests want it); labels the server fits on: 0. Counted anew."
        in others
    )


def test_cells_are_pooled_with_equal_weights() -> None:
    """Six times 5 of 10 and eight times 2 of 10: the ratios' geometric mean is sqrt(0.5 * 0.2) = 0.316."""
    first = summary_of({"cold": [10] * 6, "warm": [4] * 6})
    second = summary_of({"cold": [10] * 8, "warm": [1] * 8})
    _, (pooled,), others = tables(first, second)
    assert pooled[:4] == ["2 cells", "warm", "0.8", "68% [68, 68]"]
    assert "for these cells." in others


def test_a_median_that_is_no_number_is_not_pooled_and_the_reason_is_given() -> None:
    first = summary_of({"cold": [10] * 6, "warm": [4] * 6})
    second = summary_of({"cold": [NEVER] * 6, "warm": [4] * 6}) | {"experiment": "hard"}
    _, (pooled,), others = tables(first, second)
    assert pooled[3:] == ["–"] * 5
    assert "warm, 0.8: no figure, because a median is no number: only warm gets there in hard." in others


def test_few_seeds_are_pooled_without_an_interval() -> None:
    first = summary_of({"cold": [10] * 6, "warm": [4] * 6})
    _, (pooled,), others = tables(
        first, summary_of({"cold": [10] * 3, "warm": [4] * 3}) | {"experiment": "few"}
    )
    assert pooled[3] == "50%"
    assert "warm, 0.8: no interval, because of fewer than 6 seeds in few." in others


def test_a_folder_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "summary.json" in capsys.readouterr().err


def test_cells_whose_pooled_interval_is_open_are_written():
    """Some of the twelve cells' medians are infinite in nearly every resample."""
    summary = summary_of({"cold": [20] * 6, "warm": [19] * 4 + [None] * 2})
    *_, row = (line for line in savings_table([summary] * 12).splitlines() if line.startswith("| 12 cells"))
    assert "0% [−∞, 0]" in row
