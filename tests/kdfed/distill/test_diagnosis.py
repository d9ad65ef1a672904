from __future__ import annotations

import math
from typing import Any

import pytest

from kdfed.distill.diagnosis import is_far, trend_of, warning_of
from kdfed.models import Units


@pytest.mark.parametrize(
    ("losses", "trend"),
    [
        ([2.0], ""),
        ([2.0, 1.0], "falls"),
        ([5.0, 4.0, 3.0, 2.0, 1.9], ""),
        ([5.0, 4.0, 3.0, 2.0, 1.7], "falls"),
        ([10.0 - i for i in range(10)], "falls"),  # 3 and 4 before, 1 and 2 at the end
        ([5.0, 1.0, 1.0, 1.0, 2.1], "rose"),
        ([5.0, 1.0, 9.0, 1.0, 1.0], ""),  # it came down again
        ([5.0, math.nan, 1.0], "not finite"),
        ([5.0, math.inf, 1.0], "not finite"),
    ],
)
def test_the_trend_of_a_loss(losses: list[float], trend: str) -> None:
    assert trend_of(losses) == trend


def test_far_is_ten_points_and_more_on_few_examples() -> None:
    """sqrt(3 / 300) is 0.1, sqrt(3 / 75) is 0.2."""
    assert is_far(0.5, 0.61, 300)
    assert is_far(0.5, 0.61, 10_000)
    assert not is_far(0.5, 0.59, 10_000)
    assert not is_far(0.5, 0.69, 75)
    assert is_far(0.5, 0.71, 75)
    assert not is_far(0.9, 0.5, 1000)


FINE: dict[str, Any] = {
    "accuracy": 0.41, "ensemble_accuracy": 0.64, "validation": 500, "trend": "", "dead": Units(0, of=48),
    "agreement": 0.97, "transfer": 900,
}  # fmt: skip
BEHIND = "the student is 23 points behind its ensemble (41 against 64%): "
CURE = "; lower consolidation.lr, or use warm-up and clip"


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"ensemble_accuracy": 0.45}, ""),
        ({"ensemble_accuracy": None}, ""),
        ({"ensemble_accuracy": None, "dead": Units(9, of=48)}, ""),
        ({"trend": "not finite"}, "the student's loss was not finite" + CURE),
        ({"dead": Units(9, of=48)}, BEHIND + "9 of 48 ReLU units are dead" + CURE),
        ({"dead": Units(5, of=48), "trend": "rose"}, BEHIND + "its loss rose in the end" + CURE),
        ({"dead": Units(9, of=48), "trend": "falls"}, BEHIND + "9 of 48 ReLU units are dead" + CURE),
        ({"trend": "falls"}, BEHIND + "its loss still falls; raise consolidation.epochs"),
        (
            {"dead": None, "agreement": 0.7},
            BEHIND
            + "it follows it on 70% of the transfer set; raise consolidation.epochs or lr, or choose a "
            "larger model",
        ),
        (
            {},
            BEHIND + "the transfer set has only 900 examples; hold out more (data.splits.transfer), or use "
            "augmentation",
        ),
        (
            {"ensemble_accuracy": None, "dead": Units(24, of=48)},
            "24 of 48 ReLU units are dead: nothing reaches them any more" + CURE,
        ),
    ],
)  # fmt: skip
def test_a_warning_says_how_far_and_why(changes: dict[str, Any], warning: str) -> None:
    asked = FINE | changes
    positional = [asked.pop(key) for key in ("accuracy", "ensemble_accuracy", "validation")]
    assert warning_of(*positional, **asked) == warning
