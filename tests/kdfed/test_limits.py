"""What participants may say, in numbers and in weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdfed.limits import LabelCountLimits, Limits, Reach, most_steps
from kdfed.privacy import add_laplace_noise

START = {
    "w": np.array([3.0, 4.0], np.float32),
    "running_var": np.array([1.0], np.float32),
    "counter": np.array(7),
}


def _reach(bound: float) -> Reach:
    return Reach(START, Limits(update_bound=bound, buffers=frozenset({"running_var", "counter"})))


@pytest.mark.parametrize(("length", "near"), [(9.9, True), (10.1, False)])
def test_weights_may_move_by_the_bound_times_their_norm(length, near):
    """The norm of (3, 4) is 5; with a bound of 2 they may move by 10."""
    moved = {**START, "w": START["w"] + np.array([length, 0], np.float32)}
    assert (_reach(2.0).problem_with(moved) is None) == near


@pytest.mark.parametrize(
    ("bound", "value", "near"),
    [(1e5, 0.9e10, True), (1e5, 1.1e10, False), (2.0, 0.9e8, True), (0.5, 1.1e8, False)],
)
def test_buffers_may_move_by_the_square_of_the_bound_and_by_a_hundred_million(bound, value, near):
    """From 1: by 100,000 squared, and by 1e8 where the square is less."""
    problem = _reach(bound).problem_with({**START, "running_var": np.array([value], np.float32)})
    assert (problem is None) == near
    assert near or "buffers too far from where they started" in str(problem)


def test_counters_are_not_bounded():
    assert _reach(2.0).problem_with({**START, "counter": np.array(2**40)}) is None


def test_small_weights_may_move_by_the_bound_itself():
    reach = Reach({"w": np.zeros(3)}, Limits(update_bound=2.0))
    assert reach.problem_with({"w": np.array([2.0, 0, 0])}) is None
    assert reach.problem_with({"w": np.array([2.1, 0, 0])}) is not None


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "complex64"])
def test_numbers_that_overflow_when_squared_are_far_without_a_warning(kind):
    start = {"w": np.zeros(3, kind)}
    largest = np.finfo(kind).max
    problem = Reach(start, Limits()).problem_with({"w": np.full(3, largest, kind)})
    assert problem is not None
    assert "weights too far" in problem


@given(arrays(np.float32, 5, elements=st.floats(-50, 50, width=32)), st.floats(0.5, 20))
def test_what_needs_no_closer_look_is_near(moved, bound):
    """The quick test, by the triangle inequality, never accepts what the exact one refuses."""
    start = np.array([3.0, -1.0, 0.5, 2.0, 0.0], np.float32)
    reach = Reach({"w": start}, Limits(update_bound=bound))
    far = np.linalg.norm(moved.astype(float) - start)
    most = bound * max(1.0, np.linalg.norm(start.astype(float)))
    assume(abs(far - most) > 1e-6 * most)
    exact = far <= most
    ((_, quick), _) = reach.quick()
    assert np.linalg.norm(moved) > quick or exact
    assert (reach.problem_with({"w": moved}) is None) == exact


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_honest_noise_is_no_lie(epsilon):
    generator = np.random.default_rng(0)
    for _ in range(300):
        counts = generator.integers(0, 9, 10)
        noisy = add_laplace_noise(counts, epsilon, generator).tolist()
        plain = (counts + generator.laplace(scale=1 / epsilon, size=10)).tolist()
        limits = LabelCountLimits(10, 1 / epsilon)
        examples = int(counts.sum())
        assert limits.problem_with(noisy, examples) is limits.problem_with(plain, examples) is None


def test_steps_are_batches_times_epochs():
    assert [most_steps(3, 10, examples) for examples in (1, 10, 11)] == [3, 3, 6]
