from __future__ import annotations

import numpy as np

from kdfed.transfer_sets import OwnSet


def test_it_consists_of_the_examples_of_the_student() -> None:
    indices = OwnSet().indices(np.array([7, 3]), np.array([1, 5]), [np.array([2, 4]), np.array([6])])
    assert indices.tolist() == [1, 5]


def test_it_is_labelled_and_only_studies_have_it() -> None:
    assert OwnSet.labelled
    assert OwnSet.in_studies_only
    assert not OwnSet.is_public
