from __future__ import annotations

import math

import pytest

from simulations.report.counted import comparison_of
from simulations.report.words import (
    Saving,
    costs,
    headline,
    number,
    paying_words,
    percent,
    recipe_words,
    saving,
    signed,
    target_words,
    verdict_line,
    whole,
)
from tests.simulations.report.summaries import summary_of

NEVER = None


def compared(cold, warm, cost="exchanges", **changes):
    """Return a summary of rounds to 80% by seed, and its comparison; warm has one exchange more."""
    summary = summary_of({"cold": cold, "warm": warm}, **changes)
    return summary, comparison_of(summary, "warm", "0.8", cost)


def said(cold, warm, **changes):
    return headline(summary_of({"cold": cold, "warm": warm}, **changes), "warm", "0.8")


# ----------------------------------------------------------------------------- one saving


def test_few_seeds_are_points_without_an_interval():
    """Exchanges 5, 4, 3 instead of 10 each: 50, 60 and 70% fewer."""
    found = saving(*compared([10, 10, 10], [4, 3, 2]))
    assert found == Saving("50, 60, 70% fewer", "", "", "none")
    assert signed(*compared([10, 10, 10], [4, 3, 2])) == ("50, 60, 70%", "")


def test_more_seeds_have_the_median_its_interval_and_a_tone():
    """Exchanges 2 to 8 instead of 10: the median is 5; from the smallest to the largest, 98.4%."""
    summary, comparison = compared([10] * 7, [1, 2, 3, 4, 5, 6, 7])
    assert comparison["verdict"] == "saves"
    assert saving(summary, comparison) == Saving("50% fewer", "[20, 80]", "", "good")
    assert signed(summary, comparison) == ("50%", "[20, 80]")


def test_what_costs_more_is_said_to_cost_more():
    assert saving(*compared([10, 10], [11, 14])).figure == "20, 50% more"
    assert signed(*compared([10, 10], [11, 14]))[0] == "−50, −20%"
    found = saving(*compared([10] * 6, [11, 11, 11, 14, 14, 14]))
    assert (found.figure, found.interval, found.tone) == ("34% more", "[20, 50]", "bad")


def test_points_on_both_sides_of_nothing_keep_their_signs():
    assert saving(*compared([10, 10, 10], [4, 9, 11])).figure == "−20, 0, 50% fewer"


def test_nothing_saved_is_never_minus_nothing():
    assert saving(*compared([10, 10], [9, 9])).figure == "no difference"
    assert whole(-0.2) == "0"
    assert whole(-1234.0) == "−1,234"


def test_percents_below_nothing_have_a_minus_of_their_own_and_nothing_has_none():
    assert [percent(value) for value in (-0.0003, -0.0, -0.02, 0.957)] == ["0.0%", "0.0%", "−2.0%", "95.7%"]


def test_nobody_saves_everything():
    """One exchange of 400 is 99.75%."""
    assert (whole(99.75), whole(99.4), whole(100.0)) == (">99", "99", "100")


def test_a_seed_that_one_side_missed_is_told_beside_the_points():
    found = saving(*compared([10, NEVER, 10], [4, 4, NEVER]))
    assert (found.figure, found.tone) == ("50% fewer", "none")
    assert found.others == "only warm gets there in 1 seed; warm misses it in 1 seed"


@pytest.mark.parametrize("seeds", [3, 6])
def test_an_infinite_median_is_said_in_words(seeds):
    cold, warm, never = [10] * seeds, [4] * seeds, [NEVER] * seeds
    for comparison, words in (
        (compared(never, warm), "only warm gets there"),
        (compared(cold, never), "warm never gets there"),
        (compared(never, never), "neither gets there"),
        (compared(cold, [0] * seeds, cost="rounds"), None),
    ):
        found = saving(*comparison)
        assert "100%" not in found.figure
        if words:
            assert found == Saving(words, "", "", "none")


def test_a_median_that_most_seeds_miss_says_how_many():
    assert saving(*compared([10] * 6, [4, 4, *[NEVER] * 4])).figure == "warm misses it in 4 of 6 seeds"
    assert saving(*compared([10, 10, *[NEVER] * 4], [4] * 6)).figure == "only warm gets there in 4 of 6 seeds"


def test_as_many_misses_of_either_side_and_nothing_else_have_no_figure():
    found = saving(*compared([10, 10, 10, NEVER, NEVER, NEVER], [NEVER, NEVER, NEVER, 4, 4, 4]))
    assert found.figure == "no seed in which both get there"


def test_an_open_end_of_an_interval_is_infinite():
    found = saving(*compared([10] * 6, [4, 4, 4, 4, 4, NEVER]))
    assert (found.figure, found.interval) == ("50% fewer", "[−∞, 50]")
    assert saving(*compared([10] * 6, [14, 14, 14, 14, 14, NEVER])).interval == "[50, ∞]"


def test_a_cost_of_nothing_is_a_figure_without_an_interval():
    """Warm pays a hundred local steps an exchange; a summary in which it pays none saves all of them."""
    summary, comparison = compared([10] * 6, [4] * 6, cost="local_steps")
    saved = {"median": 100.0, "low": None, "high": None}
    found = saving(summary, {**comparison, "saved_percent": saved, "verdict": None})
    assert found == Saving("100% fewer", "", "", "none")


def test_what_starts_at_the_target_is_solved_without_federation():
    summary = summary_of({"cold": [10, 10], "other": [0, 0]})
    found = saving(summary, comparison_of(summary, "other", "0.8", "exchanges"))
    assert found.figure == "solved without federation"
    assert headline(summary, "other", "0.8")[0] == (
        "other starts at 80% and needs no exchange: solved without federation"
    )


# ----------------------------------------------------------------------------- headlines


def test_a_headline_says_medians_of_exchanges_teachers_counted():
    assert said([10, 12, 20], [4, 5, 3]) == (
        "warm reached 80% in 5 exchanges, cold in 12 (medians of 3 seeds)",
        "",
    )
    assert said([10], [0])[0] == "warm reached 80% in 1 exchange, cold in 10 (one seed)"


def test_who_alone_got_there_is_said():
    assert said([NEVER], [4])[0] == "Only warm reached 80%, in 5 exchanges; cold never did within 40 rounds"
    assert said([10], [NEVER])[0] == "warm never reached 80% within 40 rounds; cold did in 10 exchanges"
    assert said([NEVER], [NEVER])[0] == "Neither warm nor cold reached 80% within 40 rounds"


def test_an_arm_that_missed_mostly_has_no_median():
    sentence, notes = said([10, 10, 10], [4, NEVER, NEVER])
    assert sentence == "warm missed 80% in 2 of 3 seeds, cold in 10 (medians of 3 seeds)"
    assert notes == "warm missed the target in 2 of 3 seeds."


def test_seeds_left_out_are_counted_beside():
    _, notes = said([10, 10, NEVER], [4, 4, NEVER], failed=[("warm", 1)])
    assert "Neither got there in 1 of 2 seeds." in notes
    assert "Left out: 1 seed in which a run failed or ended before the horizon." in notes
    assert said([10], [30], failed=[("warm", 0)])[0] == (
        "There is no seed in which both warm and cold ran to the end"
    )


def test_verdicts_are_counted_all_three():
    few = verdict_line(summary_of({"cold": [10] * 3, "warm": [4] * 3}))
    assert few.endswith("saves 0, does not lose 0, undecided 0, none 2 (a verdict needs 6 seeds).")
    enough = verdict_line(summary_of({"cold": [10] * 8, "warm": [4] * 8, "other": [10] * 8}))
    assert enough.endswith("saves 2, does not lose 2, undecided 0.")


def test_controls_have_no_verdict_to_count():
    line = verdict_line(summary_of({"cold": [10] * 7, "server": [4] * 7}, controls=["server"]))
    assert line.endswith("saves 0, does not lose 0, undecided 0.")


# ----------------------------------------------------------------------------- numbers


def test_costs_of_few_seeds_are_points_and_of_many_their_median():
    assert costs([14.0, 12.0, math.inf]) == "12, 14, missed"
    assert costs([12.0] * 5 + [math.inf]) == "12"
    assert costs([12.0] + [math.inf] * 5) == "missed in most seeds"
    assert costs([math.inf] * 6) == "missed"
    assert costs([]) == "–"


def test_targets_are_words():
    assert [target_words(target) for target in ("0.95", "99%-of-converged", "95%-of-gain")] == [
        *("95%", "99% of converged", "95% of the gain")
    ]


def test_numbers_are_short():
    assert [number(value) for value in (0, 3, 8.67, 1204, 186.7)] == ["0", "3", "8.7", "1,204", "187"]


def test_why_a_recipe_is_what_it_is() -> None:
    assert recipe_words({}) == ""
    assert recipe_words({"recipes": {"ours": "teachers are distilled"}}) == (
        "ours is the recipe of kdfed: teachers are distilled."
    )


def test_what_to_expect_of_a_start_is_said_before_and_after_its_exchange():
    def refit(seed, explained, features=16, at=0):
        return {
            "arm": "ours",
            "seed": seed,
            "at": at,
            "features": features,
            "pretrained": False,
            "explained": explained,
        }

    few = paying_words({"refits": [refit(0, 0.43), refit(1, 0.02)]})
    assert few == (
        "ours is not expected to pay: 16 features of an untrained network, fewer than 64; "
        "after its exchange: start cold, the head explains 2% of the labels' variance, less than 10%."
    )
    assert paying_words({"refits": [refit(0, None, 144)]}).startswith("ours is expected to pay: 144 features")
    assert paying_words({"refits": [refit(0, 0.4, 144, at=10)]}) == paying_words({}) == ""
