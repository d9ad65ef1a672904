from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdfed.closed_form import ClassMeans, Lda, Linear
from kdfed.closed_form.lda import oracle_shrinkage
from tests.kdfed.closed_form.examples import CLASSES, partitions_of, solved, some_examples, summed


def exact(**changes: object) -> Lda:
    return Lda(upload="float64", **changes)


def slow_lda(features: torch.Tensor, labels: torch.Tensor, share: float, covariance: str) -> np.ndarray:
    """Logarithms of the probabilities of the classes, [N, C], by densities one example at a time."""
    x, y = features.double().numpy(), labels.numpy()
    count, dims = x.shape
    means = [x[y == c].mean(0) for c in range(CLASSES)]
    scatter = np.zeros((dims, dims))
    for row, label in zip(x, y, strict=True):
        away = row - (means[label] if covariance == "within" else x.mean(0))
        scatter += np.outer(away, away)
    scatter /= count - (CLASSES if covariance == "within" else 1)
    shrunk = (1 - share) * scatter + share * np.trace(scatter) / dims * np.eye(dims)
    inverse = np.linalg.inv(shrunk)
    logs = np.array(
        [
            [
                math.log((y == c).sum() / count) - (row - means[c]) @ inverse @ (row - means[c]) / 2
                for c in range(CLASSES)
            ]
            for row in x
        ]
    )
    return (
        logs
        - np.log(np.exp(logs - logs.max(1, keepdims=True)).sum(1, keepdims=True))
        - logs.max(1, keepdims=True)
    )


def test_worked_lda() -> None:
    """Class 0 at (-2, -1), (-2, 1), class 1 at (1, -1), (3, 1): means (-2, 0) and (2, 0), the mean of all 0.
    Scatter within: (0, +-1) twice and +-(1, 1), so [[2, 2], [2, 4]], over 4 - 2. Shrunk by 1/2 with the trace
    3: [[1/2, 1/2], [1/2, 1]] + 3/4 I = [[5/4, 1/2], [1/2, 7/4]], of determinant 31/16. Its inverse times (2,
    0) is 16/31 (7/2, -1) = (56/31, -16/31): the weight of class 1. Its bias is -1/2 2 56/31 + log(1/2).
    """
    features = torch.tensor([[-2.0, -1.0], [-2.0, 1.0], [1.0, -1.0], [3.0, 1.0]])
    head = solved(exact(shrinkage=0.5), features, torch.tensor([0, 0, 1, 1]), classes=2)
    expected = torch.tensor([[-56 / 31, 16 / 31], [56 / 31, -16 / 31]], dtype=torch.float64)
    torch.testing.assert_close(head.weight_CD, expected)
    bias = -56 / 31 + math.log(0.5)
    torch.testing.assert_close(head.bias_C, torch.tensor([bias, bias], dtype=torch.float64))


@pytest.mark.parametrize("covariance", ["within", "total"])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_lda_agrees_with_its_slow_twin(covariance: str, share: float) -> None:
    features, labels = some_examples()
    head = solved(exact(shrinkage=share, covariance=covariance), features, labels)
    logs = torch.log_softmax(head(features), 1)
    torch.testing.assert_close(logs, torch.from_numpy(slow_lda(features, labels, share, covariance)))


@pytest.mark.parametrize("covariance", ["within", "total"])
@pytest.mark.parametrize("shrinkage", [0.05, "oas"])
def test_any_partition_gives_the_centralised_solution(covariance: str, shrinkage: float | str) -> None:
    head = exact(covariance=covariance, shrinkage=shrinkage)
    for count in (60, 12):
        features, labels = some_examples(count, dims=15)
        whole = solved(head, features, labels)
        for parts in partitions_of(count):
            for order in (parts, parts[::-1]):
                federated = solved(head, features, labels, order)
                torch.testing.assert_close(federated.weight_CD, whole.weight_CD, rtol=1e-8, atol=1e-8)
                torch.testing.assert_close(federated.bias_C, whole.bias_C, rtol=1e-8, atol=1e-8)


def test_permuting_the_classes_permutes_the_rows() -> None:
    features, labels = some_examples()
    order = torch.tensor([2, 0, 3, 1])
    one, two = solved(exact(), features, labels), solved(exact(), features, order[labels])
    torch.testing.assert_close(two.weight_CD[order], one.weight_CD)
    torch.testing.assert_close(two.bias_C[order], one.bias_C)


def test_without_a_covariance_it_is_the_nearest_class_mean() -> None:
    """With shrinkage 1, up to the priors, which are the same here."""
    features, _ = some_examples()
    labels = torch.arange(60) % CLASSES
    answers = solved(exact(shrinkage=1.0), features, labels)(features).argmax(1)
    assert torch.equal(answers, solved(ClassMeans(upload="float64"), features, labels)(features).argmax(1))


def test_a_scale_of_the_features_changes_no_probability() -> None:
    features, labels = some_examples()
    small, large = solved(exact(), features, labels), solved(exact(), 2.0**20 * features, labels)
    torch.testing.assert_close(large(2.0**20 * features), small(features), rtol=1e-8, atol=1e-8)


# ----------------------------------------------------------------------------- shrinkage


def slow_oracle(covariance: np.ndarray, free: int) -> float:
    """Chen et al. 2010, equation 23, by matrices."""
    p, s = len(covariance), covariance
    top = (1 - 2 / p) * np.trace(s @ s) + np.trace(s) ** 2
    bottom = (free + 1 - 2 / p) * (np.trace(s @ s) - np.trace(s) ** 2 / p)
    return float(min(top / bottom, 1.0))


def test_oracle_shrinkage_agrees_with_its_slow_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    for count, dims in ((10, 4), (40, 4), (40, 30), (400, 3)):
        away = torch.randn(count, dims, generator=generator, dtype=torch.float64) * torch.arange(
            1.0, dims + 1
        )
        covariance = away.T @ away / count
        fast = oracle_shrinkage(torch.linalg.eigvalsh(covariance), count)
        assert fast == pytest.approx(slow_oracle(covariance.numpy(), count))
    assert fast < 0.05


def test_worked_oracle_shrinkage() -> None:
    """Eigenvalues 1 and 3, n = 10: squares 10, trace 4. (0 + 16) / (10 (10 - 8)) = 0.8."""
    assert oracle_shrinkage(torch.tensor([1.0, 3.0]), 10) == pytest.approx(0.8)


def test_what_has_no_shape_is_shrunk_altogether() -> None:
    assert oracle_shrinkage(torch.tensor([2.0, 2.0]), 10) == 1.0
    assert oracle_shrinkage(torch.tensor([1.0, 3.0]), 0) == 1.0
    assert oracle_shrinkage(torch.tensor([2.0]), 10) == 1.0


def test_the_shrinkage_of_a_fit_is_that_of_its_covariance() -> None:
    features, labels = some_examples()
    sums = summed(exact(), features, labels)
    expected = slow_oracle((sums.within_gram() / 56).numpy(), 56)
    assert solved(exact(), features, labels).chosen == pytest.approx(expected)


# ----------------------------------------------------------------------------- degenerate


def never(head: Linear, absent: int, dims: int) -> None:
    """A class is never the answer, wherever the features lie, and all outputs are finite."""
    far = 100 * torch.randn(500, dims, generator=torch.Generator().manual_seed(1))
    outputs = head(far)
    assert torch.isfinite(outputs).all()
    assert (outputs.argmax(1) != absent).all()


@pytest.mark.parametrize("shrinkage", [0.05, "oas"])
@pytest.mark.parametrize("covariance", ["within", "total"])
def test_a_class_that_nobody_has_is_never_the_answer(shrinkage: float | str, covariance: str) -> None:
    features, labels = some_examples()
    head = solved(exact(shrinkage=shrinkage, covariance=covariance), features, labels.clamp_max(2))
    never(head, 3, features.shape[1])
    three = solved(
        exact(shrinkage=shrinkage, covariance=covariance), features, labels.clamp_max(2), classes=3
    )
    torch.testing.assert_close(head.weight_CD[:3], three.weight_CD)


@pytest.mark.parametrize("covariance", ["within", "total"])
def test_one_example_in_all_answers_its_class(covariance: str) -> None:
    head = solved(exact(covariance=covariance), torch.tensor([[3.0, 4.0]]), torch.tensor([2]))
    assert (head(torch.randn(20, 2, generator=torch.Generator().manual_seed(0))).argmax(1) == 2).all()


def test_one_example_for_each_class_is_the_nearest_of_them() -> None:
    """There is no scatter within classes, so the covariance is the identity."""
    features, labels = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]), torch.arange(3)
    head = solved(exact(), features, labels, classes=3)
    assert head(torch.tensor([[1.0, 0.0], [3.0, 0.5], [0.1, 9.0]])).argmax(1).tolist() == [0, 1, 2]
    assert head.weight_CD[1].tolist() == pytest.approx([8 / 3, -4 / 3])


def test_more_features_than_examples_and_constant_ones_are_no_trouble() -> None:
    features, labels = some_examples(12, dims=40)
    features[:, 7] = 3.0
    for upload in ("float64", "float32", "float16"):
        head = solved(Lda(upload=upload), features, labels)
        assert torch.isfinite(head.weight_CD).all()
        assert (head(features).argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize("upload", ["float64", "float32", "float16"])
@pytest.mark.parametrize("value", [0.1, 3.3, "one each"])
def test_constant_features_leave_the_shares_of_the_classes(upload: str, value: float | str) -> None:
    """Nothing is made of rounding: neither in the answer, nor where a feature differs by 1%."""
    labels = some_examples(1000, dims=1)[1]
    row = 5 * torch.rand(30, generator=torch.Generator().manual_seed(0))
    row = row if isinstance(value, str) else torch.full((30,), value)
    parts = [list(range(start, 1000, 10)) for start in range(10)]
    head = solved(Lda(upload=upload), row.expand(1000, 30), labels, parts)
    away = row * (1 + 0.01 * torch.randn(30, generator=torch.Generator().manual_seed(1)))
    shares = torch.bincount(labels, minlength=CLASSES).double() / 1000
    for given in (row, away):
        torch.testing.assert_close(head(given.unsqueeze(0))[0].softmax(0), shares, rtol=0, atol=0.03)


@pytest.mark.parametrize("shrinkage", [0.0, 1.1, "lw"])
def test_shrinkages_that_are_none_are_refused(shrinkage: object) -> None:
    with pytest.raises(ValueError, match="shrinkage"):
        Lda(shrinkage=shrinkage)
