from __future__ import annotations

import numpy as np

from kdfed.transfer_sets import TeacherSet


def test_it_consists_of_the_examples_of_the_teachers() -> None:
    indices = TeacherSet().indices(np.array([7, 3]), np.array([1, 5]), [np.array([2, 4]), np.array([6])])
    assert indices.tolist() == [2, 4, 6]


def test_it_is_labelled_and_only_studies_have_it() -> None:
    assert TeacherSet.labelled
    assert TeacherSet.in_studies_only
    assert not TeacherSet.is_public
