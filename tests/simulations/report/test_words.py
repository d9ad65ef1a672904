from __future__ import annotations

import pytest

from kdfed.savings import PairedRuns, compare
from simulations.experiments import build_experiment
from simulations.report.words import headline, number, saving

EXPERIMENT = build_experiment(
    {
        "name": "x",
        "targets": ["90%-of-converged"],
        "rounds": {"horizon": 40},
        "arms": {"cold": {}, "warm": {}},
    }
)


def said(*costs: tuple[int | None, int | None]) -> tuple[str, str]:
    """Return the headline for (cold, warm) exchanges by seed; None is a miss."""
    pairs = [PairedRuns(cold, 42 if warm is None else warm, warm is None) for cold, warm in costs]
    runs = [
        {"arm": arm, "seed": seed, "target": "90%-of-converged", "exchanges_to_target": cost}
        for seed, both in enumerate(costs)
        for arm, cost in zip(("cold", "warm"), both, strict=True)
    ]
    entry = {
        "baseline": "cold",
        "arm": "warm",
        "target": "90%-of-converged",
        "cost": "exchanges",
        **compare(pairs),
        "failed": 0,
    }
    return headline({"runs": runs, "comparisons": [entry]}, EXPERIMENT, "warm", "90%-of-converged")


def test_a_saving_is_said_with_its_interval_and_seeds():
    """3/9, 4/9 and 2/9 save 67%, 56% and 78%: 67% +- 4.303 * 11.1 / sqrt(3) = 27.6."""
    sentence, notes = said((9, 3), (9, 4), (9, 2))
    assert sentence == "warm reached 90% of best in 3 instead of 9 exchanges: 67% fewer [39, 94] over 3 seeds"
    assert notes == ""


def test_one_seed_gives_no_interval_and_says_so():
    sentence, _ = said((9, 3))
    assert sentence.endswith("in 3 instead of 9 exchanges: 67% fewer in one seed, which gives no interval")


def test_what_costs_more_is_said_to_cost_more():
    sentence, _ = said((8, 12), (8, 12))
    assert sentence.endswith("in 12 instead of 8 exchanges: 50% more [50, 50] over 2 seeds")


def test_no_saving_is_said_to_be_none():
    sentence, _ = said((8, 8))
    assert sentence.endswith("in 8 exchanges, as cold did: no saving in one seed, which gives no interval")


def test_an_interval_that_spans_nothing_saved_is_named():
    sentence, _ = said((10, 5), (10, 11), (10, 9))
    assert sentence.endswith("; the interval leaves open whether anything was saved")


def test_an_arm_that_missed_everywhere_saved_nothing():
    sentence, notes = said((9, None), (11, None))
    assert sentence == (
        "warm missed 90% of best within 40 rounds, and cold reached it after 10 exchanges: nothing was saved"
    )
    assert notes == (
        "warm missed the target in 2 of 2 seeds; a miss counts as 41 rounds plus its teacher exchange."
    )


def test_a_miss_among_hits_is_counted_and_noted():
    sentence, notes = said((10, 5), (10, None))
    assert sentence.startswith("warm took 135% more [")
    assert "exchanges to 90% of best, counting misses, over 2 seeds" in sentence
    assert notes.startswith("warm missed the target in 1 of 2 seeds")


def test_a_baseline_that_missed_alone_gives_no_number():
    sentence, notes = said((None, 5))
    assert sentence == (
        "warm reached 90% of best after 5 exchanges, and cold never did within 40 rounds: "
        "a saving that cannot be put into a number"
    )
    assert notes == ""


def test_seeds_left_out_are_counted_beside():
    _, notes = said((9, 3), (None, 3), (None, None))
    assert "Left out: 1 seed in which warm reached the target and cold did not." in notes
    assert "Left out: 1 seed in which neither reached the target." in notes


def test_a_target_that_nobody_reached_is_said_so():
    assert said((None, None))[0] == "Neither warm nor cold reached 90% of best within 40 rounds"


def test_a_baseline_at_the_target_from_the_start_leaves_nothing_to_save():
    assert said((0, 1))[0] == "cold starts at 90% of best already: there was nothing to save"


def test_nothing_evaluated_is_said_so():
    assert said()[0] == "There is no seed in which both warm and cold were evaluated"


@pytest.mark.parametrize(
    ("pairs", "figure", "interval", "tone"),
    [
        ([(10, 5), (10, 5)], "50% fewer", "[50, 50]", "good"),
        ([(10, 15), (10, 15)], "50% more", "[50, 50]", "bad"),
        ([(10, 5), (10, 10)], "25% fewer", "[−293, 343]", "none"),
        ([(10, 10)], "no saving", "", "none"),
        ([], "–", "", "none"),
    ],
)
def test_a_tile_is_coloured_only_where_the_whole_interval_agrees(pairs, figure, interval, tone):
    found = saving(compare([PairedRuns(cold, warm, False) for cold, warm in pairs]))
    assert (found.figure, found.interval, found.tone) == (figure, interval, tone)


def test_numbers_are_short():
    assert [number(value) for value in (0, 3, 8.67, 1204, 186.7)] == ["0", "3", "8.7", "1,204", "187"]
