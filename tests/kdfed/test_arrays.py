"""The check of arrays before anybody's are summed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdfed.arrays import problem_with_arrays, spec_of


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
    found = problem_with_arrays({**good, **changed}, spec_of(good))
    assert found is None if problem is None else problem in found


def test_tensors_and_arrays_have_the_same_spec():
    assert spec_of({"w": torch.zeros(2, 3)}) == spec_of({"w": np.zeros((2, 3), np.float32)})
