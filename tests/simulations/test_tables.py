from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from simulations.tables import cost_table, partition_table, savings_table


def text_of(table, width=160):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def hit(rounds, **changes):
    costs = {
        "round": rounds,
        "exchanges": rounds,
        "participant_uploads": 20 * rounds,
        "bytes_up": 1000 * rounds,
        "bytes_down": 1000 * rounds,
    }
    return costs | changes


def run(arm, sustained):
    return {
        "arm": arm,
        "target": "0.9",
        "target_accuracy": 0.9,
        "rule": "sustained",
        "stopped": "horizon",
        "sustained_hit": sustained,
        "first_hit": hit(1),
    }


def comparison(cost, **changes):
    entry = {
        "baseline": "cold",
        "arm": "warm",
        "target": "0.9",
        "cost": cost,
        "saved_percent": {"mean": 64.2, "low": 58.1, "high": 70.4},
        "pairs": 3,
        "censored": {"baseline": 1, "arm": 0, "both": 1},
        "failed": 0,
    }
    return entry | changes


COSTS = ("rounds", "exchanges", "participant_uploads", "bytes", "local_steps")


def test_costs_are_means_over_the_seeds_that_reached_the_target():
    """Rounds 10 and 20 average 15; 20 uploads and 2 kB a round; the third seed missed."""
    summary = {"runs": [run("cold", hit(10)), run("cold", hit(20)), run("cold", None)]}
    row = next(line for line in text_of(cost_table(summary)).splitlines() if "cold" in line)
    for cell in ("15", "300", "30.0 kB", "1 of 3"):
        assert f" {cell} " in f"{row} "


def test_an_arm_that_never_reached_the_target_has_no_costs():
    row = next(
        line for line in text_of(cost_table({"runs": [run("cold", None)]})).splitlines() if "cold" in line
    )
    assert row.count("–") == 4


def test_savings_come_with_their_interval_and_what_was_left_out():
    text = text_of(savings_table({"comparisons": [comparison(cost) for cost in COSTS]}))
    assert text.count("64%") == text.count("[58, 70]") == 4
    row = next(line for line in text.splitlines() if "warm" in line)
    assert row.rstrip().endswith(" 3 of 5")


def test_one_pair_gives_no_interval():
    text = text_of(savings_table({"comparisons": [comparison(cost, pairs=1) for cost in COSTS]}))
    assert "64%" in text
    assert "[58" not in text


def test_a_saving_that_cannot_be_known_is_a_dash():
    text = text_of(savings_table({"comparisons": [comparison(c, saved_percent=None) for c in COSTS]}))
    assert "–" in text


def test_the_table_of_costs_says_what_an_exchange_is():
    text = text_of(cost_table({"runs": [run("cold", hit(4))]}), width=80)
    assert "An exchange is a communication round" in " ".join(text.split())


def test_headers_and_names_are_whole_on_a_narrow_terminal():
    entries = [comparison(cost, arm="consolidated", target="90%-of-converged") for cost in COSTS]
    text = text_of(savings_table({"comparisons": entries}), width=80)
    assert "exchanges" in text
    assert "…" not in text


def test_an_experiment_of_one_arm_has_no_savings_table():
    assert savings_table({"comparisons": []}) is None


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
