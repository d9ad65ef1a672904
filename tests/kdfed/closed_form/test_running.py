from __future__ import annotations

import random

import pytest
import torch

from kdfed.closed_form import Ridge, RunningSum, Sums
from tests.kdfed.closed_form.examples import some_examples, summed


def parts(count: int) -> list[Sums]:
    """Return the sums of so many participants, of features of very different sizes."""
    return [
        summed(Ridge(upload="float64"), 10.0 ** (place % 5) * some_examples(8, seed=place)[0], labels)
        for place, labels in enumerate(some_examples(8, seed=place)[1] for place in range(count))
    ]


def bits(sums: Sums | None) -> list[bytes]:
    assert sums is not None
    return [value.numpy().tobytes() for value in vars(sums).values() if value is not None]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 13])
def test_the_sum_has_the_same_bits_in_every_order(count: int) -> None:
    those, orders = parts(count), [list(range(count)), list(range(count))[::-1]]
    orders += [random.Random(seed).sample(range(count), count) for seed in range(5)]
    found = []
    for order in orders:
        total = RunningSum(count)
        for place in order:
            total.add(place, those[place])
        result = total.result()
        found.append(bits(result))
    assert all(one == found[0] for one in found)
    assert result is not None
    plain = those[0]
    for more in those[1:]:
        plain = plain + more
    for key, value in vars(plain).items():
        if value is not None:
            torch.testing.assert_close(vars(result)[key], value, rtol=1e-12, atol=1e-9)


def test_the_order_of_plain_sums_can_be_seen_in_their_bits() -> None:
    """Else the test above could not fail."""
    those = parts(13)
    forwards, backwards = those[0], those[-1]
    for one, other in zip(those[1:], those[-2::-1], strict=True):
        forwards, backwards = forwards + one, backwards + other
    assert bits(forwards) != bits(backwards)


@pytest.mark.parametrize("missing", [[0], [6], [0, 1], [1, 2, 5], [0, 1, 2, 3, 4, 5]])
def test_who_never_comes_adds_nothing_whether_it_is_said_or_not(missing: list[int]) -> None:
    those, found = parts(7), []
    for said in (False, True):
        total = RunningSum(7)
        for place in reversed(range(7)):
            if place not in missing:
                total.add(place, those[place])
            elif said:
                total.add(place, None)
        result = total.result()
        found.append(bits(result))
        assert result is not None
        assert result.examples == 8 * (7 - len(missing))
    assert found[0] == found[1]


def test_of_nobody_there_is_no_sum() -> None:
    assert RunningSum(3).result() is None


def test_what_comes_in_order_leaves_a_sum_for_each_level() -> None:
    """1,000 participants are leaves below 10 levels."""
    nothing = parts(1)[0]
    total, most = RunningSum(1000), 0
    for place in range(1000):
        total.add(place, nothing)
        most = max(most, total.held)
    assert most <= 10
    late, most = RunningSum(1000), 0
    for place in range(1, 1000):  # the first is late
        late.add(place, nothing)
        most = max(most, late.held)
    assert most <= 2 * 10
    late.add(0, nothing)
    assert (late.held, total.held) == (1, 1)


def test_nobody_is_added_twice() -> None:
    total = RunningSum(2)
    total.add(1, None)
    with pytest.raises(KeyError):
        total.add(1, None)
