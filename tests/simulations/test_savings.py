"""The table of savings, from summaries alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulations.savings import HEAD, main, savings_table


def summary(pairs: int = 3, saved: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "experiment": "small",
        "comparisons": [
            {
                "baseline": "cold",
                "arm": "warm",
                "target": "0.9",
                "rule": "sustained",
                "cost": cost,
                "saved_percent": saved,
                "ratio": None,
                "pairs": pairs,
                "censored": {"baseline": 0, "arm": 1, "both": 2},
            }
            for cost in ("rounds", "exchanges", "participant_uploads", "bytes", "local_steps")
        ],
    }


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_one_row_holds_savings_with_their_interval_and_the_misses() -> None:
    head, _, row = cells(savings_table([summary(saved={"mean": 41.6, "low": 30.2, "high": 53.0})]))
    assert head == list(HEAD)
    assert row == ["small", "warm", "0.9", *["42% [30, 53]"] * 3, "3", "0 / 1 / 2"]


def test_one_pair_gives_no_interval() -> None:
    row = cells(savings_table([summary(1, {"mean": 50.0, "low": 50.0, "high": 50.0})]))[-1]
    assert row[3] == "50%"


def test_without_a_pair_nothing_is_claimed() -> None:
    assert cells(savings_table([summary(0, None)]))[-1][3] == "–"


def test_a_folder_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "summary.json" in capsys.readouterr().err
