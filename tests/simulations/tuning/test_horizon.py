"""How long arms must run."""

from __future__ import annotations

from kdfed.convergence import plateau
from simulations.tuning.horizon import baseline_curves, horizon_of

FLAT = {"rounds.plateau": {"rounds": 2, "min-delta": 0.005}}


def test_the_horizon_is_one_and_a_half_times_the_latest_plateau(tiny):
    experiment = tiny(**FLAT)
    early = [0.1] + [0.7] * 20
    late = [0.1] * 4 + [0.7] * 20
    first, second = (plateau(one, 2, 0.005) for one in (early, late))
    assert first is not None
    assert second is not None
    assert first < second
    rounds, why = horizon_of(experiment, {7: early, 8: late})
    assert rounds == -(-3 * second // 2)
    assert why == (f"1.5 times {second}, the round at which the baseline 'cold' is flat on tuning seeds 7, 8")


def test_a_curve_that_is_not_flat_yet_is_said(tiny):
    rising = [number / 100 for number in range(31)]
    rounds, why = horizon_of(tiny(), {7: rising})
    assert rounds == 45
    assert (
        why
        == "1.5 times 30 rounds on tuning seeds 7, after which the baseline 'cold' was not flat yet with 7"
    )


def test_the_baseline_is_run_until_it_is_flat(tiny):
    tuning = {"seeds": [7, 8], "longest": 30, "examples": 0.2}
    # the first mean of five is that of round 4; round 7 is the first with another at least half of it ago
    experiment = tiny(tuning=tuning, **{"rounds.plateau": {"rounds": 2, "min-delta": 0.9}})
    curves = baseline_curves(experiment)
    assert {seed: len(curve) for seed, curve in curves.items()} == {7: 8, 8: 8}
    assert horizon_of(experiment, curves)[0] == 11
