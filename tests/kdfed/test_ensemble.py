from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdfed.ensemble import UNWEIGHTED, combine

from kdfed.config import Ensemble
from kdfed.ensembles import ENSEMBLES
from kdfed.ensembles.validated import validated_scores
from kdfed.errors import KdfedError
from kdfed.privacy import add_laplace_noise

LN3 = math.log(3)
ALL = sorted(ENSEMBLES)


def random_logits(teachers: int = 3, examples: int = 5, classes: int = 4) -> torch.Tensor:
    return 2 * torch.randn(teachers, examples, classes, generator=torch.Generator().manual_seed(0))


def scores_for(name: str, teachers: int = 3, classes: int = 4) -> torch.Tensor | None:
    if name in UNWEIGHTED:
        return None
    scores = torch.arange(teachers * classes, dtype=torch.float64).view(teachers, classes) % 5
    scores[:, 1] = 0  # a class that nobody has
    return scores


def slow_combine(
    name: str, logits: list[list[list[float]]], temperature: float, scores: list[list[float]] | None
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


def test_the_list_names_what_the_experiment_can_name() -> None:
    assert set(ENSEMBLES) == set(Ensemble.__args__)  # type: ignore[attr-defined]


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
    scores = None if name in UNWEIGHTED else torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    target = combine(name, logits, 0.5, scores)
    assert torch.isfinite(target).all()
    torch.testing.assert_close(target.sum(1), torch.ones(1))


def test_worked_mean_logits() -> None:
    """Teachers (2 T ln 3, 0) and (0, 0): mean (T ln 3, 0), softmax at T (3/4, 1/4)."""
    logits = torch.tensor([[[8 * LN3, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(combine("mean-logits", logits, 4.0), torch.tensor([[0.75, 0.25]]))


def test_worked_mean_probabilities() -> None:
    """At T = 4, (4 ln 3, 0) is (3/4, 1/4) and (0, 0) is (1/2, 1/2): mean (5/8, 3/8)."""
    logits = torch.tensor([[[4 * LN3, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(combine("mean-probabilities", logits, 4.0), torch.tensor([[0.625, 0.375]]))


def test_worked_label_counts() -> None:
    """Probabilities (3/4, 1/4) and (1/4, 3/4); counts (3, 0) and (1, 0).
    Class 0: 3/4 * 3/4 + 1/4 * 1/4 = 10/16. Class 1, which nobody has: (1/4 + 3/4) / 2 = 8/16.
    Scaled: (10/18, 8/18).
    """
    logits = torch.tensor([[[LN3, 0.0]], [[0.0, LN3]]])
    target = combine("label-counts", logits, 1.0, torch.tensor([[3, 0], [1, 0]]))
    torch.testing.assert_close(target, torch.tensor([[10 / 18, 8 / 18]]))


def test_worked_confidence() -> None:
    """A teacher without opinion has weight 0, so the other one decides: (3/4, 1/4) at T = 4."""
    logits = torch.tensor([[[4 * LN3, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(combine("confidence", logits, 4.0), torch.tensor([[0.75, 0.25]]))


def test_teachers_without_any_confidence_weigh_the_same() -> None:
    target = combine("confidence", torch.zeros(3, 2, 4), 1.0)
    torch.testing.assert_close(target, torch.full((2, 4), 0.25))


def test_worked_validated_scores() -> None:
    """Labels 0 0 1. Teacher 0 says 0 0 0: in class 0 two right, 3 said and 2 labelled, F1 = 4/5; class 1: 0.
    Teacher 1 says 0 1 1: class 0 one right, 1 + 2, F1 = 2/3; class 1 one right, 2 + 1, F1 = 2/3. Class 2: 0.
    """
    said = torch.tensor([[0, 0, 0], [0, 1, 1]])
    scores = validated_scores(torch.nn.functional.one_hot(said, 3).float(), torch.tensor([0, 0, 1]))
    expected = torch.tensor([[4 / 5, 0, 0], [2 / 3, 2 / 3, 0]], dtype=torch.float64)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("name", ["label-counts", "validated"])
def test_weighted_ensembles_refuse_missing_or_misshapen_scores(name: str) -> None:
    with pytest.raises(KdfedError, match=rf"'{name}' needs one score .* shape \(3, 4\), got none"):
        combine(name, random_logits(), 1.0)
    with pytest.raises(KdfedError, match=r"shape \(3, 4\), got shape \(2, 4\)"):
        combine(name, random_logits(), 1.0, torch.ones(2, 4))


def test_laplace_noise_has_the_scale_one_over_epsilon() -> None:
    """A Laplace distribution of scale b has mean absolute value b."""
    counts = np.full(20_000, 1000)
    noisy = add_laplace_noise(counts, 0.25, np.random.default_rng(0))
    assert np.abs(noisy - counts).mean() == pytest.approx(4.0, rel=0.03)
    assert noisy.mean() == pytest.approx(1000.0, abs=0.2)


def test_noisy_counts_are_never_negative_and_repeat_with_the_seed() -> None:
    counts = np.array([0, 1, 2, 0, 0, 5])
    first, second = (add_laplace_noise(counts, 0.1, np.random.default_rng(3)) for _ in range(2))
    assert first.min() >= 0
    assert first.tolist() == second.tolist()


def test_an_epsilon_of_zero_is_refused() -> None:
    with pytest.raises(KdfedError, match="epsilon above 0, got 0"):
        add_laplace_noise(np.ones(2), 0, np.random.default_rng(0))


def test_an_unknown_ensemble_is_refused_though_there_are_scores() -> None:
    with pytest.raises(KdfedError, match=r"expected one of mean-logits, .*, got 'own'"):
        combine("own", torch.zeros(2, 3, 4), 1.0, torch.ones(2, 4))
