from __future__ import annotations

import pytest
import torch

from kdfed.closed_form import ClassMeans
from kdfed.errors import KdfedError
from kdfed.task import CLASSIFICATION
from tests.kdfed.closed_form.examples import CLASSES, partitions_of, solved, some_examples, summed

DISTANCES = ("euclidean", "cosine")


def exact(distance: str = "euclidean") -> ClassMeans:
    return ClassMeans(upload="float64", distance=distance)


def test_worked_class_means() -> None:
    """Class 0 at (0, 0), (0, 2), class 1 at (4, 1) twice: means (0, 1) and (4, 1), of all (2, 1).
    Weights -+(2, 0); biases +-4 - 2. At an angle: (0, 1) and (4, 1) / sqrt(17).
    """
    features = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 1.0], [4.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    head = solved(exact(), features, labels, classes=2)
    assert head.weight_CD.tolist() == [[-2, 0], [2, 0]]
    assert head.bias_C.tolist() == [2, -6]
    head = solved(exact("cosine"), features, labels, classes=2)
    expected = torch.tensor([[0.0, 1.0], [4 / 17**0.5, 1 / 17**0.5]], dtype=torch.float64)
    torch.testing.assert_close(head.weight_CD, expected)
    assert head.bias_C.tolist() == [0, 0]


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_answer_is_the_nearest_mean_as_its_slow_twin_finds_it(distance: str) -> None:
    features, labels = some_examples()
    means = torch.stack([features[labels == c].double().mean(0) for c in range(CLASSES)])
    answers = []
    for row in features.double():
        if distance == "euclidean":
            answers.append(min(range(CLASSES), key=lambda c: float((row - means[c]).norm())))
        else:
            answers.append(
                max(range(CLASSES), key=lambda c: float(row @ means[c] / row.norm() / means[c].norm()))
            )
    assert solved(exact(distance), features, labels)(features).argmax(1).tolist() == answers


@pytest.mark.parametrize("distance", DISTANCES)
def test_any_partition_gives_the_centralised_solution(distance: str) -> None:
    features, labels = some_examples()
    whole = solved(exact(distance), features, labels)
    for parts in partitions_of(60):
        for order in (parts, parts[::-1]):
            federated = solved(exact(distance), features, labels, order)
            torch.testing.assert_close(federated.weight_CD, whole.weight_CD, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(federated.bias_C, whole.bias_C, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_class_that_nobody_has_is_never_the_answer(distance: str) -> None:
    features, labels = some_examples()
    head = solved(exact(distance), features, labels.clamp_max(2))
    far = 100 * torch.randn(500, features.shape[1], generator=torch.Generator().manual_seed(1))
    assert (head(far).argmax(1) != 3).all()


def test_one_example_in_all_answers_its_class_and_means_of_0_are_no_trouble() -> None:
    for distance in DISTANCES:
        for features in (torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)):
            head = solved(exact(distance), features, torch.tensor([2]))
            assert torch.isfinite(head.weight_CD).all()
            assert head(features).argmax(1).tolist() == [2]


def test_no_gram_matrix_is_sent() -> None:
    features, labels = some_examples()
    assert set(exact().statistics(features, labels, CLASSES, CLASSIFICATION, 0)) == {"counts", "sums"}


def test_nobody_can_tell_its_scale_from_the_sums() -> None:
    with pytest.raises(ValueError, match="calibrate"):
        ClassMeans(calibrate="sums")


def test_nothing_is_made_of_no_example() -> None:
    features, labels = some_examples()
    with pytest.raises(KdfedError, match="statistics of at least one example, got none"):
        exact().solve(summed(exact(), features[:0], labels[:0]), features.shape[1], 0)
