from __future__ import annotations

import math

import pytest
import torch

from kdfed.averaging import average_states
from kdfed.errors import KdfedError
from kdfed.models import State, build_model, state_of
from kdfed.settings import ModelSettings


def some_states(count: int) -> list[State]:
    states = [
        state_of(build_model(ModelSettings(options={"norm": "batch"}), (1, 8, 8), 3, k)) for k in range(count)
    ]
    for k, state in enumerate(states):
        state["norm1.num_batches_tracked"] = torch.tensor(10 * k + 1)
    return states


def test_a_worked_average() -> None:
    """(1 * 2 + 3 * 6) / 4 = 5; the counter (1 * 1 + 3 * 4) / 4 = 3.25 is rounded to 3."""
    states = [
        {"w": torch.tensor([2.0], dtype=torch.float16), "n": torch.tensor(1)},
        {"w": torch.tensor([6.0], dtype=torch.float16), "n": torch.tensor(4)},
    ]
    average = average_states(states, [1, 3])
    assert (average["w"].dtype, average["n"].dtype) == (torch.float16, torch.int64)
    assert (average["w"].item(), average["n"].item()) == (5.0, 3)


def test_an_average_agrees_with_the_slow_twin() -> None:
    states, weights = some_states(3), [5.0, 0.0, 2.0]
    average = average_states(states, weights)
    for key, value in average.items():
        for place, number in enumerate(value.flatten().tolist()):
            terms = [w * state[key].flatten()[place].item() for w, state in zip(weights, states, strict=True)]
            assert number == pytest.approx(
                sum(terms) / 7, rel=1e-5, abs=0.5 if key.endswith("tracked") else 1e-7
            )


def test_the_average_of_identical_states_is_the_identity() -> None:
    state = some_states(1)[0]
    average = average_states([state] * 7, [0.1, 3, 1e-9, 1e9, 7, 1 / 3, 2])
    assert list(average) == list(state)
    assert all(torch.equal(average[key], value) for key, value in state.items())


def test_the_scale_of_the_weights_does_not_matter() -> None:
    states = some_states(2)
    first, second = average_states(states, [1, 3]), average_states(states, [2, 6])
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [2, -1], [math.nan, 1], [math.inf, 1]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(KdfedError, match="weights of at least 0 with a sum above 0"):
        average_states(some_states(2), weights)


def test_states_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(KdfedError, match="one weight per state, got 2 states and 1 weights"):
        average_states(some_states(2), [1])
    with pytest.raises(KdfedError, match="got 0 states"):
        average_states([], [])
    first, second = some_states(2)
    second["conv1.weight"] = second["conv1.weight"][:2]
    with pytest.raises(KdfedError, match=r"state 1 differs in conv1\.weight"):
        average_states([first, second], [1, 1])
