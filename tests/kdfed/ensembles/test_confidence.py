from __future__ import annotations

import math

import torch

from kdfed.ensembles import Confidence

LN3 = math.log(3)


def test_worked_confidence() -> None:
    """A teacher without opinion has weight 0, so the other one decides: (3/4, 1/4) at T = 4."""
    logits = torch.tensor([[[4 * LN3, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(Confidence().target(logits, 4.0, None), torch.tensor([[0.75, 0.25]]))


def test_teachers_without_any_confidence_weigh_the_same() -> None:
    target = Confidence().target(torch.zeros(3, 2, 4), 1.0, None)
    torch.testing.assert_close(target, torch.full((2, 4), 0.25))
