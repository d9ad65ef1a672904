from __future__ import annotations

import pytest

from kdfed.distill.schedule import cosine, warm_up


def test_the_cosine_starts_at_one_halves_halfway_and_ends_at_zero() -> None:
    assert [cosine(0.0), cosine(0.5), cosine(1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_warm_up_rises_in_equal_parts_and_then_stays() -> None:
    """Of 10 steps, 0.4 are four: a quarter, a half, three quarters, all of the rate."""
    factors = [warm_up(step / 10, 1 / 10, share=0.4) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.05])
def test_a_warm_up_of_one_step_or_less_changes_nothing(share: float) -> None:
    assert [warm_up(step / 10, 1 / 10, share) for step in range(10)] == [1.0] * 10
