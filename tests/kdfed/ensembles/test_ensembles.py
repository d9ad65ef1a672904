from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.ensembles import ENSEMBLES
from kdfed.errors import KdfedError

ALL = sorted(ENSEMBLES.members)
WEIGHTED = ("label-counts", "validated")
SCORED = (*WEIGHTED, "stacked")


def combine(
    name: str, logits: torch.Tensor, temperature: float, scores: torch.Tensor | None = None
) -> torch.Tensor:
    return ENSEMBLES.find(name)().target(logits, temperature, scores)


def random_logits(teachers: int = 3, examples: int = 5, classes: int = 4) -> torch.Tensor:
    return 2 * torch.randn(teachers, examples, classes, generator=torch.Generator().manual_seed(0))


def scores_for(name: str, teachers: int = 3, classes: int = 4) -> torch.Tensor | None:
    if name == "stacked":  # one teacher alone has no map
        generator = torch.Generator().manual_seed(1)
        return None if teachers == 1 else torch.randn(teachers, classes + 1, classes, generator=generator)
    if name not in WEIGHTED:
        return None
    scores = torch.arange(teachers * classes, dtype=torch.float64).view(teachers, classes) % 5
    scores[:, 1] = 0  # a class that nobody has
    return scores


def slow_combine(
    name: str, logits: list[list[list[float]]], temperature: float, scores: Any
) -> list[list[float]]:
    """Each ensemble's equation in plain loops."""

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value - max(values)) for value in values]
        return [power / sum(powers) for power in powers]

    teachers, examples, classes = len(logits), len(logits[0]), len(logits[0][0])
    target = []
    for n in range(examples):
        soft = [softmax([value / temperature for value in logits[k][n]]) for k in range(teachers)]
        if name == "mean-logits":
            mean = [sum(logits[k][n][c] for k in range(teachers)) / teachers for c in range(classes)]
            target.append(softmax([value / temperature for value in mean]))
            continue
        if name == "stacked":
            mapped = [0.0] * classes
            for k in range(teachers):
                logs = [math.log(p) for p in softmax(logits[k][n])]
                for c in range(classes):
                    mapped[c] += (
                        sum(logs[d] * scores[k][d][c] for d in range(classes)) + scores[k][classes][c]
                    )
            target.append(softmax([value / temperature for value in mapped]))
            continue
        weights = [[1.0] * classes for _ in range(teachers)]
        if name == "confidence":
            for k in range(teachers):
                entropy = -sum(p * math.log(p) for p in softmax(logits[k][n]))
                weights[k] = [1 - entropy / math.log(classes)] * classes
        if scores is not None:
            weights = [
                [float(scores[k][c]) if any(row[c] for row in scores) else 1.0 for c in range(classes)]
                for k in range(teachers)
            ]
        row = [
            sum(weights[k][c] * soft[k][c] for k in range(teachers))
            / sum(weights[k][c] for k in range(teachers))
            for c in range(classes)
        ]
        target.append([value / sum(row) for value in row])
    return target


def test_the_registry_names_each_ensemble_as_its_settings_do() -> None:
    assert {name: kind().ensemble for name, kind in ENSEMBLES.members.items()} == {name: name for name in ALL}
    assert len(ALL) == 6


def test_an_ensemble_that_is_not_asked_for_counts_or_validation_has_no_scores() -> None:
    counts, labels = np.ones((3, 4)), torch.zeros(5, dtype=torch.int64)
    for name in set(ALL) - set(SCORED):
        assert ENSEMBLES.find(name)().scores(random_logits(), labels, counts) is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_every_ensemble_agrees_with_its_slow_twin(name: str, temperature: float) -> None:
    logits, scores = random_logits(), scores_for(name)
    slow = slow_combine(name, logits.tolist(), temperature, None if scores is None else scores.tolist())
    torch.testing.assert_close(combine(name, logits, temperature, scores), torch.tensor(slow))


@pytest.mark.parametrize("name", ALL)
def test_one_teacher_is_the_identity(name: str) -> None:
    logits = random_logits(teachers=1)
    target = combine(name, logits, 2.5, scores_for(name, teachers=1))
    torch.testing.assert_close(target, torch.softmax(logits[0] / 2.5, 1))


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_teachers_does_not_matter(name: str) -> None:
    logits, scores, order = random_logits(), scores_for(name), [2, 0, 1]
    shuffled = combine(name, logits[order], 3.0, None if scores is None else scores[order])
    torch.testing.assert_close(shuffled, combine(name, logits, 3.0, scores))


@pytest.mark.parametrize("name", ALL)
def test_targets_are_probabilities_even_for_extreme_logits(name: str) -> None:
    """The two teachers are sure of classes for which they have no weight."""
    logits = torch.tensor([[[500.0, 0.0]], [[0.0, 500.0]]])
    scores = None if name not in WEIGHTED else torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    scores = scores_for(name, teachers=2, classes=2) if name == "stacked" else scores
    target = combine(name, logits, 0.5, scores)
    assert torch.isfinite(target).all()
    torch.testing.assert_close(target.sum(1), torch.ones(1))


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_ensembles_refuse_missing_or_misshapen_scores(name: str) -> None:
    with pytest.raises(KdfedError, match=r"one score per teacher and class, shape \(3, 4\), got none"):
        combine(name, random_logits(), 1.0)
    with pytest.raises(KdfedError, match=r"shape \(3, 4\), got shape \(2, 4\)"):
        combine(name, random_logits(), 1.0, torch.ones(2, 4))


def test_an_unknown_ensemble_is_refused() -> None:
    with pytest.raises(KdfedError, match=r"expected one of mean-probabilities, .*, got 'own'"):
        combine("own", torch.zeros(2, 3, 4), 1.0, torch.ones(2, 4))
