from __future__ import annotations

import pytest

from kdfed.distill import TunedConsolidation
from kdfed.distill.tuned import Candidate, best, grid, search

ASKED = {"temperatures": (1.0, 3.0, 9.0), "weights": (0.0, 0.5, 1.0), "labels": True}


def settings(**changes: object) -> TunedConsolidation:
    return TunedConsolidation.model_validate({"method": "tuned", **ASKED, **changes})


def run(temperature: float, weight: float) -> Candidate:
    """Best at temperature 3 and weight 0.5."""
    return Candidate(temperature, weight, 1 - abs(temperature - 3) / 10 - abs(weight - 0.5), steps=7)


def test_the_grid_holds_every_pair_and_weight_0_once() -> None:
    assert grid(settings()) == [
        (1.0, 0.0),
        (1.0, 0.5),
        (3.0, 0.5),
        (9.0, 0.5),
        (1.0, 1.0),
        (3.0, 1.0),
        (9.0, 1.0),
    ]


def test_the_grid_search_tries_every_pair_and_finds_the_best() -> None:
    trials = search(settings(), 0, run)
    assert [(trial.temperature, trial.weight) for trial in trials] == grid(settings())
    assert (best(trials).temperature, best(trials).weight) == (3.0, 0.5)


def test_the_first_of_equals_wins() -> None:
    trials = [Candidate(1.0, 1.0, 0.5, 1), Candidate(2.0, 1.0, 0.7, 1), Candidate(3.0, 1.0, 0.7, 1)]
    assert best(trials) is trials[1]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sampler_tries_as_many_different_pairs_as_asked_for(sampler: str) -> None:
    chosen = settings(sampler=sampler, trials=4)
    trials = search(chosen, 5, run)
    pairs = [(trial.temperature, trial.weight) for trial in trials]
    assert len(set(pairs)) == len(pairs) == 4
    assert set(pairs) <= set(grid(chosen))
    assert trials == search(chosen, 5, run)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sampler_ends_when_the_grid_is_used_up(sampler: str) -> None:
    trials = search(settings(sampler=sampler, trials=100), 1, run)
    assert {(t.temperature, t.weight) for t in trials} == set(grid(settings()))
    assert len(trials) == len(grid(settings()))
