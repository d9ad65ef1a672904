"""Draws come from (seed, phase, round, participant) and from nothing else."""

from __future__ import annotations

import torch

from kdfed.seeding import derive, numpy_generator, torch_generator, torch_seed


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
