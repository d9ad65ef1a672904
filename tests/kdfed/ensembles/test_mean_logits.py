from __future__ import annotations

import math

import torch

from kdfed.ensembles import MeanLogits

LN3 = math.log(3)


def test_worked_mean_logits() -> None:
    """Teachers (2 T ln 3, 0) and (0, 0): mean (T ln 3, 0), softmax at T (3/4, 1/4)."""
    logits = torch.tensor([[[8 * LN3, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(MeanLogits().target(logits, 4.0, None), torch.tensor([[0.75, 0.25]]))
