from __future__ import annotations

from fractions import Fraction

import pytest

from simulations.engines.gpus import gpu_share


@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 7, 12, 100])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_worker_finds_room_on_one_gpu_and_no_gpu_is_promised_twice(device, gpus, workers):
    """Dealt as Ray does: a share lies on one GPU, exactly counted."""
    share = Fraction(str(gpu_share(device, gpus, workers)))
    assert 0 < share <= 1
    free = [Fraction(1)] * gpus
    for _ in range(workers):
        roomy = next(index for index, left in enumerate(free) if left >= share)
        free[roomy] -= share
    assert min(free) >= 0


def test_shares_are_rounded_down_to_rays_step():
    """1 / 6 is 0.1667 at four places, and six of those exceed one GPU."""
    assert gpu_share("cuda", 1, 6) == 0.1666


def test_three_workers_on_two_gpus_get_a_half_each():
    assert gpu_share("auto", 2, 3) == 0.5


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 4), ("mps", 4), ("cuda", 0), ("auto", 0)])
def test_without_a_gpu_there_is_nothing_to_share(device, gpus):
    assert gpu_share(device, gpus, 2) == 0.0


def test_workers_on_a_gpu_that_is_named_keep_all_of_them():
    """Else Ray would show them one, as cuda:0, and cuda:1 be none of theirs."""
    assert gpu_share("cuda:1", 2, 2) == 0.0
