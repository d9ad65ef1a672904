from __future__ import annotations

import math

import numpy as np
import pytest

from kdfed.pooled import Pooled, log_ratios, pool

INFINITE = math.inf


def slow_median(values):
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return math.nan
    low, high = known[(len(known) - 1) // 2], known[len(known) // 2]
    return (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else high


def slow_pool(cells, draws, seed):
    """The definition, one seed of one cell of one resample at a time."""
    generator = np.random.default_rng(seed)
    chosen = [generator.integers(0, len(cell), (draws, len(cell))).tolist() for cell in cells]
    means = []
    for draw in range(draws):
        medians = [
            slow_median([cell[seed] for seed in seeds[draw]])
            for cell, seeds in zip(cells, chosen, strict=True)
        ]
        means.append(sum(medians) / len(cells))
    low = sorted(-INFINITE if math.isnan(mean) else mean for mean in means)
    high = sorted(INFINITE if math.isnan(mean) else mean for mean in means)
    left_out = int(0.025 * draws)
    medians = tuple(map(slow_median, cells))
    return Pooled(sum(medians) / len(cells), low[left_out], high[-1 - left_out], medians)


CELLS = {
    "plain": [[-0.9, -0.7, -0.8, -0.1, -0.4, -0.6], [0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.4]],
    "misses of one side": [
        [-INFINITE, -0.7, -0.8, -0.1, -INFINITE, -0.6],
        [0.1, -0.2, INFINITE, 0.0, 0.2, 0.3],
    ],
    "both missed": [
        [math.nan, -0.7, -0.8, math.nan, math.nan, -0.6],
        [math.nan, -0.2, -0.3, -0.1, -0.3, -0.2],
    ],
}


@pytest.mark.parametrize("name", CELLS)
def test_pooling_agrees_with_its_slow_twin(name):
    fast, slow = pool(CELLS[name], 400, 3), slow_pool(CELLS[name], 400, 3)
    assert (fast.low, fast.high, fast.log_ratio) == pytest.approx((slow.low, slow.high, slow.log_ratio))
    assert fast.medians == pytest.approx(slow.medians)


def test_every_cell_weighs_the_same_however_many_seeds_it_has():
    """Medians -1 and 0 average to -0.5; all 26 seeds together would have the median 0."""
    assert pool([[-1.0] * 6, [0.0] * 20]).log_ratio == -0.5


def test_the_interval_of_one_cell_lies_within_its_seeds_and_around_its_median():
    found = pool([CELLS["plain"][0]])
    assert -0.9 <= found.low < found.log_ratio < found.high <= -0.1


@pytest.mark.parametrize("infinite", [INFINITE, -INFINITE])
def test_the_interval_holds_its_figure_however_many_cells_there_are(infinite):
    """A third of the resamples of a cell have an infinite median; of twelve cells, nearly all have one."""
    found = pool([[0.0] * 4 + [infinite] * 2] * 12)
    assert (found.log_ratio, sorted([found.low, found.high])) == (0.0, sorted([0.0, infinite]))


def test_the_same_cells_give_the_same_interval():
    assert pool(CELLS["plain"]) == pool(CELLS["plain"])
    assert pool(CELLS["plain"], 40, seed=1) != pool(CELLS["plain"], 40, seed=2)


@pytest.mark.parametrize("infinite", [INFINITE, -INFINITE])
def test_a_cell_with_an_infinite_median_cannot_be_pooled(infinite):
    assert pool([[-0.5] * 6, [infinite] * 4 + [0.1] * 2]) == Pooled(None, None, None, (-0.5, infinite))


@pytest.mark.parametrize("cell", [[], [math.nan] * 6, [-INFINITE] * 3 + [INFINITE] * 3])
def test_a_cell_without_a_median_cannot_be_pooled(cell):
    assert pool([[-0.5] * 6, cell]).log_ratio is None


def test_nothing_pools_to_nothing():
    assert pool([]) == Pooled(None, None, None, ())


def test_fewer_than_six_seeds_give_a_figure_and_no_interval():
    assert pool([[-0.5] * 6, [-0.1] * 5]) == Pooled(-0.3, None, None, (-0.5, -0.1))


def test_a_resample_that_nobody_finishes_widens_both_ends():
    """One seed of six got there: most resamples of six have no other, and many do not have it."""
    found = pool([[math.nan] * 5 + [-0.5]])
    assert (found.log_ratio, found.low, found.high) == (-0.5, -INFINITE, INFINITE)


# ----------------------------------------------------------------------------- the ratios of a summary


def run(arm, seed, rounds, stopped="horizon", **changes):
    hit = None
    if rounds is not None:
        hit = {"round": rounds, "exchanges": rounds, "participant_uploads": 10 * rounds, "local_steps": 0}
        hit |= {"bytes_up": 100 * rounds, "bytes_down": 300 * rounds} | changes
    return {
        "arm": arm,
        "seed": seed,
        "target": "0.9",
        "target_accuracy": 0.9,
        "stopped": stopped,
        "hit": hit,
        "totals": {"round": 40 if stopped == "horizon" else 30},
    }


def summary(*runs):
    return {"horizon": {"rounds": 40}, "runs": runs}


def ratios(cost="exchanges", *, cold, warm):
    runs = [*(run("cold", *own) for own in cold), *(run("warm", *own) for own in warm)]
    return log_ratios(summary(*runs), "cold", "warm", "0.9", cost)


@pytest.mark.parametrize(
    "cost", ["rounds", "exchanges", "participant_uploads", "bytes", "rounds_to_convergence"]
)
def test_a_ratio_is_that_of_the_arm_over_the_baseline(cost):
    assert ratios(cost, cold=[(0, 20)], warm=[(0, 5)]) == {0: pytest.approx(math.log(5 / 20))}


def test_a_miss_of_one_side_is_an_infinity_of_its_sign_and_of_both_not_a_number():
    found = ratios(cold=[(0, 20), (1, None), (2, None)], warm=[(0, None), (1, 5), (2, None)])
    assert (found[0], found[1]) == (INFINITE, -INFINITE)
    assert math.isnan(found[2])


def test_who_did_not_run_to_the_horizon_and_did_not_hit_is_no_pair():
    assert ratios(cold=[(0, 20), (1, 20), (2, None, "failed")], warm=[(0, None, "plateau"), (2, 4)]) == {}
    assert list(ratios(cold=[(0, 20, "target")], warm=[(0, 4, "listener")])) == [0]
    assert ratios(cold=[(0, 20)], warm=[(0, 4, "failed")]) == {}


def test_a_target_that_could_not_be_resolved_is_no_pair():
    runs = [
        run("cold", 0, None) | {"target_accuracy": None},
        run("warm", 0, None) | {"target_accuracy": None},
    ]
    assert log_ratios(summary(*runs), "cold", "warm", "0.9", "exchanges") == {}


def test_a_hit_counts_at_least_one_round_and_exchange():
    """Warm is there in round 0, cold in round 4."""
    warm = run("warm", 0, 0, exchanges=1)
    assert log_ratios(summary(run("cold", 0, 4), warm), "cold", "warm", "0.9", "rounds") == {
        0: math.log(1 / 4)
    }


def test_an_arm_that_needs_no_exchange_stays_out_of_ratios():
    assert ratios(cold=[(0, 4)], warm=[(0, 0)]) == {}


def test_what_the_baseline_has_for_nothing_has_no_ratio():
    assert ratios("local_steps", cold=[(0, 4)], warm=[(0, 2)]) == {}
