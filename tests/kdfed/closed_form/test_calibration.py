from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from kdfed.closed_form import Lda, Linear, Ridge, scale_by_labels, scale_by_sums
from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.task import CLASSIFICATION
from tests.kdfed.closed_form.examples import CLASSES, solved, some_examples, summed


def entropy(linear: Linear, features: torch.Tensor, labels: torch.Tensor, factor: float) -> float:
    return float(functional.cross_entropy(factor * linear(features), labels))


def overlapping(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around the same class means, whose classes overlap: a covariance of 9 I."""
    features, labels = some_examples(count, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    return features + 8**0.5 * torch.randn(features.shape, generator=generator), labels


def test_a_scale_of_the_logits_takes_nothing_from_the_result() -> None:
    features, labels = overlapping(80, 1)
    linear = solved(Ridge(), features, labels)
    once = scale_by_labels(linear, features, labels)
    for factor in (1e-8, 1e8):
        again = scale_by_labels(linear.scaled(factor), features, labels)
        assert again * factor == pytest.approx(once, rel=1e-4)
    assert scale_by_labels(linear.scaled(once), features, labels) == pytest.approx(1.0, rel=1e-4)


def test_a_ridge_head_has_a_nearly_flat_softmax_and_its_scale_removes_that() -> None:
    features, labels = overlapping(400, 1)
    unseen, answers = overlapping(400, 2)
    linear = solved(Ridge(), features, labels)
    flat = entropy(linear, unseen, answers, 1.0)
    by_labels = entropy(linear, unseen, answers, scale_by_labels(linear, *overlapping(400, 3)))
    assert by_labels < flat - 0.1


@pytest.mark.parametrize("head", [Ridge(), Lda()], ids=lambda head: head.head)
@pytest.mark.parametrize("count", [60, 2000])
def test_sums_alone_give_nearly_the_scale_of_labels_where_features_are_gaussian(
    head: Ridge | Lda, count: int
) -> None:
    features, labels = overlapping(count, 1)
    linear = solved(head, features, labels)
    unseen, answers = overlapping(4000, 2)
    by_sums = scale_by_sums(linear, summed(head, features, labels), 0)
    by_labels = scale_by_labels(linear, unseen, answers)
    assert by_sums == pytest.approx(by_labels, rel=0.1 if count == 2000 else 0.5)
    lost = entropy(linear, unseen, answers, by_sums) - entropy(linear, unseen, answers, by_labels)
    assert 0 <= lost < (0.001 if count == 2000 else 0.06)


def test_the_scale_by_sums_does_not_depend_on_the_partition() -> None:
    features, labels = overlapping(60, 1)
    linear = solved(Ridge(upload="float64"), features, labels)
    head = Ridge(upload="float64")
    one = scale_by_sums(linear, summed(head, features, labels), 0)
    two = scale_by_sums(linear, summed(head, features, labels, [[n] for n in range(60)]), 0)
    assert one == pytest.approx(two, rel=1e-5)


def test_the_scale_by_sums_is_finite_for_one_example_and_for_absent_classes() -> None:
    features, labels = some_examples()
    for few in (slice(0, 1), slice(0, 5)):
        linear = solved(Lda(), features[few], labels[few])
        assert math.isfinite(scale_by_sums(linear, summed(Lda(), features[few], labels[few]), 0))


def test_a_head_can_be_calibrated_as_it_is_solved() -> None:
    features, labels = overlapping(100, 1)
    unseen = Examples(*overlapping(50, 2))
    dims = features.shape[1]
    plain = Ridge().solve(summed(Ridge(), features, labels), dims, 7, unseen)
    for calibrate, used in (("sums", set()), ("validation", {"validation"})):
        head = Ridge(calibrate=calibrate)
        assert head.server_labels() == used
        sums = summed(head, features, labels)
        scaled = head.solve(sums, dims, 7, unseen)
        exact = head.fit(sums, None)
        factor = (
            scale_by_sums(exact, sums, 7)
            if calibrate == "sums"
            else scale_by_labels(exact, unseen.inputs, unseen.labels)
        )
        assert factor > 1.5
        torch.testing.assert_close(scaled.weight_CD, factor * plain.weight_CD, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(scaled.bias_C, factor * plain.bias_C, rtol=1e-4, atol=1e-6)
    with pytest.raises(KdfedError, match="expected validation examples to choose with"):
        head.solve(sums, dims, 7)


def test_nothing_to_calibrate_with_is_refused() -> None:
    features, labels = some_examples()
    linear = solved(Ridge(), features, labels)
    with pytest.raises(KdfedError, match="finite logits of at least one example, got 0"):
        scale_by_labels(linear, features[:0], labels[:0])
    with pytest.raises(KdfedError, match="expected finite logits"):
        scale_by_labels(linear, features * math.nan, labels)


def test_calibration_changes_no_answer() -> None:
    features, labels = overlapping(100, 1)
    sums = summed(Ridge(), features, labels)
    one = Ridge().solve(sums, features.shape[1], 7)
    two = Ridge(calibrate="sums").solve(sums, features.shape[1], 7)
    assert (
        CLASSIFICATION.score(one(features), labels)
        == CLASSIFICATION.score(two(features), labels)
        > 1 / CLASSES
    )
