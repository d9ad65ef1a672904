from __future__ import annotations

import numpy as np
import torch

from kdfed.data import Examples
from kdfed.transfer_sets import PublicSet


def test_it_is_the_transfer_split_with_its_labels() -> None:
    public = Examples(torch.zeros(30, 1, 8, 8), torch.arange(30))
    assert PublicSet().examples(public, [], 0) is public
    assert PublicSet.labelled
    assert PublicSet.is_public


def test_in_a_study_it_is_the_transfer_split_too() -> None:
    indices = PublicSet().indices(np.array([7, 3]), np.array([1]), [np.array([2]), np.array([4])])
    assert indices.tolist() == [7, 3]
