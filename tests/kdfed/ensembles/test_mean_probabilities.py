from __future__ import annotations

import math

import torch

from kdfed.ensembles import MeanProbabilities

LN3 = math.log(3)


def test_worked_mean_probabilities() -> None:
    """At T = 4, (4 ln 3, 0) is (3/4, 1/4) and (0, 0) is (1/2, 1/2): mean (5/8, 3/8)."""
    logits = torch.tensor([[[4 * LN3, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(MeanProbabilities().target(logits, 4.0, None), torch.tensor([[0.625, 0.375]]))
