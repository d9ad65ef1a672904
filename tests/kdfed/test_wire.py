"""Plans, answers and the checks on arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdfed.errors import WireError
from kdfed.wire import Answers, Plan, numbered, problem_with, problem_with_metrics, spec_of


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_plan_reads_back_equal(cohorts):
    plan = Plan(tuple(map(tuple, cohorts)), tuple(0 for c in cohorts for _ in c), "mean")
    assert Plan.from_lists(plan.to_lists()) == plan


def test_answers_read_back_equal():
    answers = Answers((4, 7), (0, -1), (2, 0), ("", "not finite: w"))
    assert Answers.from_lists(answers.to_lists()) == answers


@pytest.mark.parametrize(
    "lists",
    [
        {},
        {"participants": [1], "sizes": [2], "variants": [0], "reply": "mean"},
        {"participants": [1], "sizes": [1], "variants": [0], "reply": "median"},
        {"participants": ["x"], "sizes": [1], "variants": [0], "reply": "mean"},
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(lists):
    with pytest.raises(WireError, match="expected"):
        Plan.from_lists(lists)


def test_answers_of_different_lengths_are_refused():
    with pytest.raises(WireError, match="one entry a participant"):
        Answers.from_lists({"participants": [1, 2], "results": [0], "local-steps": [1], "reasons": [""]})


def test_records_are_numbered_only_where_there_are_several():
    assert [numbered("arrays", 0, 1), numbered("arrays", 1, 2)] == ["arrays", "arrays-1"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"w": np.full((2, 3), np.nan, np.float32)}, "not finite: w"),
        ({"w": np.full((2, 3), np.inf, np.float32)}, "not finite: w"),
        ({"w": np.zeros((3, 2), np.float32)}, r"wrong shape of w: expected (2, 3), got (3, 2)"),
        ({"w": np.zeros((2, 3), np.float64)}, "wrong dtype of w: expected float32, got float64"),
        ({"v": np.zeros(1)}, "unexpected ['v']"),
    ],
)
def test_the_first_thing_that_is_wrong_with_arrays_is_named(changed, problem):
    good = {"w": np.zeros((2, 3), np.float32), "n": np.array(4)}
    found = problem_with({**good, **changed}, spec_of(good))
    assert found is None if problem is None else problem in found


def test_tensors_and_arrays_have_the_same_spec():
    assert spec_of({"w": torch.zeros(2, 3)}) == spec_of({"w": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("count", [0, -1, None, float("nan"), "5"])
def test_a_participant_without_examples_cannot_be_weighted(count):
    assert "num-examples above 0" in problem_with_metrics({"num-examples": count})
    assert problem_with_metrics({"num-examples": 5}) is None


@pytest.mark.parametrize("steps", [-1, 1.5, float("inf"), "3"])
def test_steps_are_a_whole_number(steps):
    assert "whole number" in problem_with_metrics({"num-examples": 5, "local-steps": steps})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")]])
def test_a_metric_that_is_not_finite_is_named(value):
    assert problem_with_metrics({"num-examples": 5, "train-loss": value}) == "not finite: train-loss"
