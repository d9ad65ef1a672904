"""The check of a reply's numbers."""

from __future__ import annotations

import pytest

from kdfed.metrics import problem_with_metrics


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


def test_an_empty_list_is_a_metric_like_any_other_but_no_loss():
    assert problem_with_metrics({"num-examples": 5, "more": []}) is None
    assert problem_with_metrics({"num-examples": 5, "train-loss": []}) == (
        "expected a number as train-loss, got []"
    )
