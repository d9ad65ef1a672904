from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from simulations.tables import (
    controls_table,
    convergence_table,
    cost_table,
    partition_table,
    result_tables,
    savings_table,
)
from tests.simulations.report.summaries import summary_of

NEVER = None


def text_of(table, width=160):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def row_of(text, *words):
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_costs_are_medians_over_seeds_a_miss_being_later_than_everything():
    """Cold in rounds 10, 20 and never: 20 exchanges, 20 uploads and 2 kB each, a hundred steps."""
    text = text_of(cost_table(summary_of({"cold": [10, 20, NEVER]})))
    assert "median of 3 seeds" in text
    assert row_of(text, "cold", " 80% ").split() == [
        "cold",
        "80%",
        "20",
        "400",
        "40.0",
        "kB",
        "2,000",
        "1",
        "of",
        "3",
    ]


def test_an_arm_that_mostly_missed_has_no_costs():
    row = row_of(text_of(cost_table(summary_of({"cold": [10, NEVER, NEVER]}))), "cold", " 80% ")
    assert row.count("–") == 4
    assert row.rstrip().endswith("2 of 3")


def test_runs_that_failed_are_unknown_and_not_missed():
    row = row_of(text_of(cost_table(summary_of({"cold": [10, 20]}, failed=[("cold", 1)]))), "cold", " 80% ")
    assert row.rstrip().endswith("1 unknown")


def test_the_table_of_costs_says_what_an_exchange_is_and_how_long_arms_ran():
    text = " ".join(text_of(cost_table(summary_of({"cold": [4]})), width=80).split())
    assert "An exchange is a communication round" in text
    assert "Horizon: 40 rounds (so the tests want it). Labels the server fits on: 0." in text
    assert "Read on 2,000 evaluation examples." in text
    noted = summary_of({"cold": [4]}) | {"note": "Counted [anew]."}
    assert "Counted [anew]. Horizon" in text_of(cost_table(noted))


def test_savings_of_few_seeds_are_points():
    text = text_of(savings_table(summary_of({"cold": [10, 10, 10], "warm": [4, 3, 2]})))
    assert "one figure a seed, no interval" in text
    assert row_of(text, "warm").split("warm")[1].split()[:3] == ["50,", "60,", "70%"]
    assert "undecided 0, none 2 (a verdict needs 6 seeds)." in " ".join(text.split())


def test_savings_of_more_seeds_come_with_interval_and_verdict():
    text = text_of(savings_table(summary_of({"cold": [10] * 7, "warm": [1, 2, 3, 4, 5, 6, 7]})))
    assert row_of(text, "warm").split() == ["warm", *["50%"] * 4, "saves", "7"]
    assert row_of(text, " 80% ", "[20, 80]").count("[20, 80]") == 4
    assert "saves 2, does not lose 0, undecided 0." in " ".join(text.split())


def test_what_was_left_out_is_counted():
    summary = summary_of({"cold": [10, 10, 10], "warm": [4, 4, 20]}, failed=[("warm", 2)])
    assert row_of(text_of(savings_table(summary)), "warm").rstrip().endswith("2 of 3")


def test_an_infinite_saving_is_words():
    text = text_of(savings_table(summary_of({"cold": [NEVER], "warm": [4]}, targets=[0.8, 0.5])))
    assert "only warm gets there" in text
    assert "100%" not in text


def test_an_experiment_of_one_arm_has_no_savings_table():
    assert savings_table(summary_of({"cold": [4]})) is None


def test_convergence_is_told_of_every_arm_controls_named():
    summary = summary_of({"cold": [10, 12], "warm": [4, 5], "server": [6, NEVER]}, controls=["server"])
    text = text_of(convergence_table(summary))
    assert "rounds to convergence (99% of converged), one figure a seed" in text
    assert row_of(text, "warm").split()[:6] == ["warm", "4,", "5", "58,", "60%", "fewer"]
    assert "server (control)" in row_of(text, "6, missed")


def test_controls_stand_below_and_say_how_to_run_them():
    text = text_of(controls_table(summary_of({"cold": [10], "warm": [4]}), {"cold": 0.1}))
    assert row_of(text, "cold ").split() == ["cold", "0", "10.0%", "90.0%", "85.0%", "10", "10"]
    assert row_of(text, "server alone").split()[:4] == ["server", "alone", "not", "run"]
    assert "controls: [server]" in text


@pytest.mark.parametrize("seeds", [3, 10])
def test_all_tables_fit_into_a_hundred_columns(seeds):
    arms = {name: [10, 12, 14, *[20] * 7][:seeds] for name in ("cold", "consolidated", "server", "longer")}
    summary = summary_of(
        arms, targets=["90%-of-converged", "95%-of-converged"], controls=["server", "longer"]
    )
    titles = ("cost to target", "% saved against cold", "rounds to convergence", "controls")
    for table, title in zip(result_tables(summary, []), titles, strict=True):
        text = text_of(table, width=100)
        assert text.startswith(title)
        assert "…" not in text
        rules = [line for line in text.splitlines() if "──" in line]
        assert rules[0].endswith(" ")  # else columns were cut off at the right


def test_the_partition_table_tells_who_holds_what():
    text = text_of(partition_table(np.array([[3, 0], [1, 2]]), ("cat", "dog"), "who"))
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "3", "·", "1", "3"] in lines
    assert ["all", "4", "2", "6"] in lines


def test_hundreds_of_participants_and_classes_are_summed_up():
    text = text_of(partition_table(np.ones((300, 100), dtype=np.int64), tuple(map(str, range(100))), "who"))
    assert len(text.splitlines()) < 60
    assert "260 more" in text
    assert "80 more" in text
    assert "30000" in text
