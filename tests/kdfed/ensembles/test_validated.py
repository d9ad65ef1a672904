from __future__ import annotations

import torch

from kdfed.ensembles import Validated
from kdfed.ensembles.validated import validated_scores


def test_worked_validated_scores() -> None:
    """Labels 0 0 1. Teacher 0 says 0 0 0: in class 0 two right, 3 said and 2 labelled, F1 = 4/5; class 1: 0.
    Teacher 1 says 0 1 1: class 0 one right, 1 + 2, F1 = 2/3; class 1 one right, 2 + 1, F1 = 2/3. Class 2: 0.
    """
    said = torch.tensor([[0, 0, 0], [0, 1, 1]])
    scores = validated_scores(torch.nn.functional.one_hot(said, 3).float(), torch.tensor([0, 0, 1]))
    expected = torch.tensor([[4 / 5, 0, 0], [2 / 3, 2 / 3, 0]], dtype=torch.float64)
    torch.testing.assert_close(scores, expected)


def test_it_scores_on_the_validation_split_and_not_without_one() -> None:
    logits, labels = torch.eye(3).unsqueeze(0), torch.arange(3)
    scores = Validated().scores(logits, labels, None)
    assert scores is not None
    assert scores.tolist() == [[1.0, 1.0, 1.0]]
    assert Validated().scores(None, labels, None) is None
