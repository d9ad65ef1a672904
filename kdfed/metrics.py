"""The names of a reply's metrics, and the check that every reply's must pass.

================== ============================== ====================================================
name               type                           meaning
================== ============================== ====================================================
``num-examples``   int, at least 1                on how many examples the participant trained
``train-loss``     float                          the mean loss of its last epoch
``local-steps``    int, at least 0                the optimiser steps it made
``label-counts``   list of float [C]              its examples of each class, when asked
``eval-loss``      float                          the mean loss on its own examples
``eval-acc``       float, at most 1               the score on its own examples: accuracy, or R^2
``server-steps``   int                            steps of a distillation on the server; never sent
================== ============================== ====================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeGuard

from kdfed.limits import LARGEST, MOST_NUMBERS, MOST_OF_A_KEY, LabelCountLimits
from kdfed.task import WORST

NUM_EXAMPLES = "num-examples"
TRAIN_LOSS = "train-loss"
LOCAL_STEPS = "local-steps"
LABEL_COUNTS = "label-counts"
EVAL_LOSS = "eval-loss"
EVAL_ACCURACY = "eval-acc"
SERVER_STEPS = "server-steps"

Metrics: TypeAlias = dict[str, int | float | list[int] | list[float]]

_SINGLE = (NUM_EXAMPLES, LOCAL_STEPS, TRAIN_LOSS, EVAL_LOSS, EVAL_ACCURACY)


def number(metrics: Mapping[str, Any], key: str) -> float:
    """Return a metric that was checked already."""
    value = metrics[key]
    assert isinstance(value, int | float), f"{key} was not checked: {value!r}"
    return float(value)


def problem_with_metrics(
    metrics: Mapping[str, Any],
    examples: int | None = None,
    label_counts: LabelCountLimits | None = None,
) -> str | None:
    """Say what is wrong with a participant's metrics, or with those of a mean.

    Parameters
    ----------
    metrics
        What arrived: numbers and lists of numbers by key.
    examples
        The most that ``num-examples``, a whole number above 0, may be. Default: no limit.
    label_counts
        What ``label-counts`` must be like. Default: nobody asked for them.

    Returns
    -------
    str or None
        One sentence; None when all is well. Every number must be finite and at most
        :data:`~kdfed.limits.LARGEST` in size, and ``eval-acc`` a score.
    """
    count, made = metrics.get(NUM_EXAMPLES), metrics.get(LOCAL_STEPS, 0)
    if not _is_whole(count) or count < 1:
        return f"expected {NUM_EXAMPLES} above 0, a whole number, got {count!r:.40}"
    if examples is not None and count > examples:
        return f"expected at most {examples} as {NUM_EXAMPLES}, got {count!r:.40}"
    if not _is_whole(made) or made < 0:
        return f"expected {LOCAL_STEPS} as a whole number of at least 0, got {made!r:.40}"
    numbers = 0
    for key, value in metrics.items():
        values = value if isinstance(value, list) else (value,)
        if len(key) > MOST_OF_A_KEY:
            return f"expected metrics whose names have at most {MOST_OF_A_KEY} characters, got {len(key)}"
        if key in _SINGLE and isinstance(value, list):
            return f"expected a number as {key}, got {value!r:.40}"
        numbers += len(values)
        if numbers > MOST_NUMBERS:
            return f"expected at most {MOST_NUMBERS} numbers in all metrics, got more"
        if not all(isinstance(each, int | float) for each in values):
            return f"expected numbers as {key}, got {value!r:.40}"
        if not all(map(math.isfinite, values)):
            return f"not finite: {key:.40}"
        if any(abs(each) > LARGEST for each in values):
            return f"expected {key:.40} at most {LARGEST:g} in size, got {value!r:.40}"
    if SERVER_STEPS in metrics:
        return f"expected no {SERVER_STEPS}, which only the server makes"
    score = metrics.get(EVAL_ACCURACY, 0)
    if not WORST <= score <= 1:
        return f"expected {EVAL_ACCURACY} from {WORST:g} to 1, got {score!r:.40}"
    return None if label_counts is None else label_counts.problem_with(metrics.get(LABEL_COUNTS), count)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
