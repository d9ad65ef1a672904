"""What is tried."""

from __future__ import annotations

from typing import Any

from simulations.tuning.space import alone, candidates, with_changes, with_shared
from tests.conftest import TINY

SPACE: dict[str, Any] = {
    "local.epochs": [1, 2],
    "local.lr": [0.05, 0.1],
    "server": [{"strategy": "fedavg"}, {"strategy": "fedavgm", "server-momentum": 0.5}],
}


def drawn(most: int, seed: int = 100, space: dict[str, Any] = SPACE) -> list[dict[str, Any]]:
    return [dict(one.changes) for one in candidates(TINY, "cold", space, seed, most)]


def test_the_settings_as_they_stand_come_first_and_no_candidate_twice():
    """Of the eight points one is what stands there: epochs 1, lr 0.1, fedavg."""
    every = drawn(100)
    assert every[0] == {}
    assert len(every) == 8
    assert {"local.epochs": 1, "local.lr": 0.1, "server": {"strategy": "fedavg"}} not in every
    assert len({str(one) for one in every}) == 8


def test_the_same_file_draws_the_same_candidates_and_another_seed_others():
    assert drawn(4) == drawn(4) == drawn(100)[:4]
    assert drawn(8) != drawn(8, seed=101)


def test_points_whose_values_do_not_go_together_are_left_out():
    """adam has no momentum: of six points, sgd's three are left, of which one stands there already."""
    space = {"local.optimizer": ["sgd", "adam"], "local.momentum": [0.0, 0.5, 0.9]}
    found = drawn(100, space=space)
    assert len(found) == 1 + 2 + 1
    assert {one.get("local.momentum") for one in found if one.get("local.optimizer") == "adam"} == {0.0}


def test_another_strategy_drops_the_keys_of_the_old_one():
    values = with_changes(TINY, "cold", {"server": {"strategy": "fedavgm", "server-momentum": 0.5}})
    back = with_changes(values, "cold", {"server": {"strategy": "fedavg"}})
    assert alone(back, "cold").arm("cold") == alone(TINY, "cold").arm("cold")


def test_what_the_baseline_ends_with_is_shared_and_its_arm_stays_the_same():
    changes = {"local.lr": 0.03, "server": {"strategy": "fedavgm", "server-momentum": 0.5}}
    values = with_changes(TINY, "cold", changes)
    shared = with_shared(values, "cold")
    assert shared["arms"]["cold"] == {"start": "random"}
    assert alone(shared, "cold").arm("cold") == alone(values, "cold").arm("cold")
    warm = alone(shared, "consolidated").arm("consolidated")
    assert (warm.local.lr, warm.server.strategy) == (0.03, "fedavgm")
    assert warm.server.cohort_size == 2, "what was not tuned stays"
