from __future__ import annotations

import numpy as np

from kdfed.transfer_sets import UnionSet


def test_it_consists_of_the_examples_of_the_student_and_its_teachers() -> None:
    indices = UnionSet().indices(np.array([7, 3]), np.array([1, 5]), [np.array([2, 4]), np.array([6])])
    assert indices.tolist() == [1, 5, 2, 4, 6]


def test_it_is_labelled_and_only_studies_have_it() -> None:
    assert UnionSet.labelled
    assert UnionSet.in_studies_only
    assert not UnionSet.is_public
