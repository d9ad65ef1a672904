from __future__ import annotations

import math

import numpy as np
import torch

from kdfed.ensembles import LabelCounts

LN3 = math.log(3)


def test_worked_label_counts() -> None:
    """Probabilities (3/4, 1/4) and (1/4, 3/4); counts (3, 0) and (1, 0).
    Class 0: 3/4 * 3/4 + 1/4 * 1/4 = 10/16. Class 1, which nobody has: (1/4 + 3/4) / 2 = 8/16.
    Scaled: (10/18, 8/18).
    """
    logits = torch.tensor([[[LN3, 0.0]], [[0.0, LN3]]])
    target = LabelCounts().target(logits, 1.0, torch.tensor([[3, 0], [1, 0]]))
    torch.testing.assert_close(target, torch.tensor([[10 / 18, 8 / 18]]))


def test_the_scores_are_the_counts_and_none_where_nobody_sent_any() -> None:
    labels = torch.arange(3)
    counts = np.array([[3.5, 0.0, 1.0], [1.0, 0.0, 2.0]])
    scores = LabelCounts().scores(None, labels, counts)
    assert scores is not None
    assert scores.tolist() == counts.tolist()
    assert LabelCounts().scores(torch.zeros(2, 3, 3), labels, None) is None
