"""Plans, answers and the checks on arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kdfed.wire import Answers, Plan, numbered, problem_with, problem_with_metrics, spec_of

from kdfed.errors import MessageError
from kdfed.limits import Limits


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_plan_reads_back_equal(cohorts):
    plan = Plan(tuple(map(tuple, cohorts)), tuple(0 for c in cohorts for _ in c), "mean")
    assert Plan.from_lists(plan.to_record()) == plan


def test_answers_read_back_equal():
    answers = Answers((4, 7), (0, -1), (2, 0), ("", "not finite: w"))
    assert Answers.from_record(answers.to_record()) == answers


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
    with pytest.raises(MessageError, match="expected"):
        Plan.from_lists(lists)


def test_the_limits_of_a_plan_read_back_equal():
    for buffers in (frozenset[str](), frozenset({"mean", "variance"})):
        plan = Plan(((1, 2), (3,)), (0, 0, 0), "mean", Limits(12, 3.5, buffers))
        assert Plan.from_lists(plan.to_record()) == plan


COHORTS = ((4, 7), (9,))


@pytest.mark.parametrize(
    ("reply", "results", "members"),
    [
        ("mean", (0, 0, 1), {0: [4, 7], 1: [9]}),
        ("mean", (-1, -1, 0), {0: [9]}),
        ("each", (0, -1, 1), {0: [4], 1: [9]}),
        ("each", (-1, -1, -1), {}),
    ],
)
def test_answers_say_whose_work_is_in_a_result(reply, results, members):
    answers = Answers((4, 7, 9), results, (1, 1, 1), ("", "", ""))
    assert answers.members(Plan(COHORTS, (0, 0, 0), reply)) == members


@pytest.mark.parametrize(
    ("reply", "participants", "results"),
    [
        ("mean", (4, 7, 8), (0, 0, 1)),
        ("mean", (4, 4, 9), (0, 0, 1)),
        ("mean", (4, 7, 9), (0, 1, 2)),
        ("mean", (4, 7, 9), (0, 0, 0)),
        ("mean", (4, 7, 9), (0, 0, 2**31)),
        ("each", (4, 7, 9), (0, 0, 1)),
        ("each", (4, 7, 9), (0, 1, 3)),
    ],
)
def test_answers_that_do_not_fit_the_plan_are_refused(reply, participants, results):
    answers = Answers(participants, results, (1, 1, 1), ("", "", ""))
    with pytest.raises(MessageError, match="expected"):
        answers.members(Plan(COHORTS, (0, 0, 0), reply))


@pytest.mark.parametrize("key", ["participants", "results", "local-steps", "reasons"])
@pytest.mark.parametrize("odd", [1.5, None, True])
def test_answers_that_are_no_whole_numbers_or_texts_are_refused(key, odd):
    lists = Answers((4,), (0,), (1,), ("",)).to_record()
    with pytest.raises(MessageError, match=f"in the list {key} of answers, got {odd}"):
        Answers.from_record({**lists, key: [odd]})


def test_answers_of_different_lengths_are_refused():
    with pytest.raises(MessageError, match="one entry a participant"):
        Answers.from_record({"participants": [1, 2], "results": [0], "local-steps": [1], "reasons": [""]})


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


@pytest.mark.parametrize("count", [0, -1, None, float("nan"), "5", 0.5, 7.0, 1.7e308, True])
def test_a_participant_without_examples_cannot_be_weighted(count):
    assert "num-examples above 0" in problem_with_metrics({"num-examples": count})
    assert problem_with_metrics({"num-examples": 5}) is None


@pytest.mark.parametrize("steps", [-1, 1.5, float("inf"), "3"])
def test_steps_are_a_whole_number(steps):
    assert "whole number" in problem_with_metrics({"num-examples": 5, "local-steps": steps})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")]])
def test_a_metric_that_is_not_finite_is_named(value):
    assert problem_with_metrics({"num-examples": 5, "more": value}) == "not finite: more"


@pytest.mark.parametrize("value", [1e31, -1e31, [1.0, 1e300], 2**200])
def test_a_metric_that_is_absurd_is_named(value):
    found = problem_with_metrics({"num-examples": 5, "more": value})
    assert found is not None
    assert "expected more at most 1e+30 in size, got" in found
    assert len(found) < 150


@pytest.mark.parametrize(
    ("score", "good"), [(1.0, True), (-3.5, True), (1.1, False), (-2e6, False), ([1.0], False)]
)
def test_a_score_is_at_most_one(score, good):
    assert (problem_with_metrics({"num-examples": 5, "eval-acc": score}) is None) == good
