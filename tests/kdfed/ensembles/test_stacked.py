from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.ensembles import MeanProbabilities, Stacked, Validated
from kdfed.ensembles.stacked import fitted_map
from kdfed.errors import KdfedError
from kdfed.least_squares import LeastSquares

CLASSES = 4


def misled_teachers(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Teachers that each know two classes and answer every other example with the first of them; and
    labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    logits = []
    for known in ((0, 1), (1, 2), (2, 3)):
        said = torch.where((labels == known[0]) | (labels == known[1]), labels, torch.tensor(known[0]))
        noise = torch.randn(count, CLASSES, generator=generator)
        logits.append(4 * torch.nn.functional.one_hot(said, CLASSES) + noise)
    return torch.stack(logits), labels


def accuracy(target: torch.Tensor, labels: torch.Tensor) -> float:
    return float((target.argmax(1) == labels).double().mean())


def test_worked_target() -> None:
    """Two teachers with probabilities (3/4, 1/4) and (1/4, 3/4). Taken as they are from the first and not at
    all from the second, with a bias of log 3 for class 1 in two halves: (3/4, 3/4) scaled, so (1/2, 1/2).
    """
    logits = torch.tensor([[[math.log(3), 0.0]], [[0.0, math.log(3)]]])
    maps = torch.zeros(2, 3, 2)
    maps[0, 0, 0] = maps[0, 1, 1] = 1.0
    maps[:, 2, 1] = math.log(3) / 2
    torch.testing.assert_close(Stacked().target(logits, 1.0, maps), torch.tensor([[0.5, 0.5]]))


def test_it_finds_out_which_teacher_to_believe_where_weights_by_class_cannot() -> None:
    validation, labels = misled_teachers(200)
    unseen, answers = misled_teachers(500, seed=1)
    ensembles = {}
    for ensemble in (Stacked(), Validated(), MeanProbabilities()):
        scores = ensemble.scores(validation, labels, None)
        ensembles[ensemble.ensemble] = accuracy(ensemble.target(unseen, 1.0, scores), answers)
    assert ensembles["stacked"] > 0.95
    assert ensembles["stacked"] > max(ensembles["validated"], ensembles["mean-probabilities"]) + 0.1


def test_its_softmax_is_about_as_sure_as_it_is_right() -> None:
    validation, labels = misled_teachers(400)
    unseen, answers = misled_teachers(2000, seed=1)
    noise = 3 * torch.randn(validation.shape, generator=torch.Generator().manual_seed(2))
    more = 3 * torch.randn(unseen.shape, generator=torch.Generator().manual_seed(3))
    target = Stacked().target(unseen + more, 1.0, Stacked().scores(validation + noise, labels, None))
    assert accuracy(target, answers) < 0.9
    assert float(target.max(1).values.mean()) == pytest.approx(accuracy(target, answers), abs=0.06)


def test_it_is_not_fitted_on_the_examples_that_judge_it() -> None:
    validation, labels = misled_teachers(50)
    unseen = Stacked().unseen_N(labels)
    poisoned = torch.where(unseen, (labels + 1) % CLASSES, labels)
    honest = Stacked().scores(validation, labels, None)
    assert honest is not None
    changed = validation.clone()
    changed[:, unseen] = 7.0
    # Which examples are unseen depends on the labels, so the choice is held while they are poisoned.
    held = type("Held", (Stacked,), {"unseen_N": lambda self, labels_N: unseen})()
    for logits, answers in ((validation, poisoned), (changed, labels)):
        again = held.scores(logits, answers, None)
        assert again is not None
        assert torch.equal(again, honest)


def test_a_share_of_every_class_judges_and_the_first_of_each_is_fitted_on() -> None:
    labels = torch.tensor([0] * 41 + [1] * 21 + [2] * 1 + [3] * 9)[
        torch.randperm(72, generator=torch.Generator().manual_seed(0))
    ]
    mask = Stacked(unseen=0.25).unseen_N(labels)
    assert int(mask.sum()) == 17  # a quarter of the 68 that are not the first of their class
    counts = torch.bincount(labels[mask], minlength=4).tolist()
    assert counts == [10, 5, 0, 2]
    for label in range(4):
        assert not mask[(labels == label).nonzero()[0, 0]]
    assert torch.equal(mask, Stacked(unseen=0.25).unseen_N(labels))


def test_a_split_that_is_too_small_to_judge_is_refused() -> None:
    with pytest.raises(KdfedError, match=r"got 6 of 4 classes; raise data.splits.validation"):
        Stacked().unseen_N(torch.tensor([0, 1, 2, 3, 0, 1]))
    with pytest.raises(KdfedError, match="got 0 of 0 classes"):
        Stacked().unseen_N(torch.zeros(0, dtype=torch.int64))


def test_such_a_split_is_refused_before_anything_is_trained() -> None:
    def data(*labels: int) -> Any:
        """The validation split is all but the first example."""
        return SimpleNamespace(
            dataset=SimpleNamespace(labels=np.array([9, *labels])),
            splits=SimpleNamespace(validation=np.arange(1, len(labels) + 1)),
        )

    (refusal,) = Stacked().misfits(None, data(0, 1, 2, 3, 0, 1))
    assert refusal.key == ".ensemble"
    assert "raise data.splits.validation" in refusal.message
    assert list(Stacked().misfits(None, data(0, 1, 2, 3, 0, 1, 2, 3))) == []


def test_one_teacher_has_no_map_and_is_its_own_target() -> None:
    logits, labels = misled_teachers(50)
    assert Stacked().scores(logits[:1], labels, None) is None
    torch.testing.assert_close(Stacked().target(logits[:1], 2.0, None), torch.softmax(logits[0] / 2, 1))


def test_without_weights_there_is_no_map_and_without_a_map_no_target() -> None:
    logits, labels = misled_teachers(50)
    assert Stacked().scores(None, labels, None) is None
    with pytest.raises(KdfedError, match=r"map of the teachers' outputs, shape \(3, 5, 4\), got none"):
        Stacked().target(logits, 1.0, None)
    with pytest.raises(KdfedError, match=r"got shape \(3, 4\)"):
        Stacked().target(logits, 1.0, torch.ones(3, 4))


def test_the_order_of_teachers_does_not_matter_to_the_fit() -> None:
    validation, labels = misled_teachers(60)
    order = [2, 0, 1]
    one, two = (Stacked().scores(logits, labels, None) for logits in (validation, validation[order]))
    assert one is not None
    torch.testing.assert_close(two, one[order], rtol=1e-6, atol=1e-9)


def test_a_number_that_is_added_to_a_teachers_logits_changes_nothing() -> None:
    validation, labels = misled_teachers(60)
    moved = validation + torch.tensor([0.0, 30.0, -7.0]).view(3, 1, 1)
    one, two = (Stacked().scores(logits, labels, None) for logits in (validation, moved))
    torch.testing.assert_close(
        Stacked().target(validation, 3.0, one), Stacked().target(moved, 3.0, two), rtol=1e-3, atol=1e-4
    )


def test_the_scale_is_that_of_maps_that_were_fitted_without_their_example() -> None:
    """The slow twin fits a map for every example, with the same penalty."""
    validation, labels = misled_teachers(40)
    noise = torch.randn(validation.shape, generator=torch.Generator().manual_seed(2))
    features = torch.log_softmax((validation + 2 * noise).double(), 2).permute(1, 0, 2).flatten(1)
    wanted = torch.nn.functional.one_hot(labels, CLASSES).double()
    penalty = LeastSquares.from_examples(features, wanted).least_left_out()
    logits = []
    for one in range(40):
        rest = [other for other in range(40) if other != one]
        weight, bias = LeastSquares.from_examples(features[rest], wanted[rest]).solution(penalty)
        logits.append(features[one] @ weight.T + bias)
    weight, bias = LeastSquares.from_examples(features, wanted).solution(penalty)
    scaled, _ = fitted_map(features, labels, CLASSES)
    scale = float((scaled / weight).mean())
    losses = [
        float(torch.nn.functional.cross_entropy(factor * torch.stack(logits), labels))
        for factor in (0.8 * scale, scale, 1.25 * scale)
    ]
    assert np.argmin(losses) == 1
