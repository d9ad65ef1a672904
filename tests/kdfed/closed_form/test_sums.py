from __future__ import annotations

import numpy as np
import pytest
import torch

from kdfed.arrays import problem_with_arrays, spec_of
from kdfed.closed_form import HEADS, ClassMeans, ClosedFormHead, Lda, Ridge, Sums
from kdfed.closed_form.sums import EPSILON, Upload, encoded, sums_of
from kdfed.errors import KdfedError
from kdfed.task import CLASSIFICATION, REGRESSION, Task
from tests.kdfed.closed_form.examples import CLASSES, DIMS, numbers_for, partitions_of, some_examples, summed

CASES = [
    ("ridge", CLASSIFICATION),
    ("lda", CLASSIFICATION),
    ("class-means", CLASSIFICATION),
    ("ridge", REGRESSION),
]
UPLOADS: tuple[Upload, ...] = ("float64", "float32", "float16")


def same(one: Sums, two: Sums, relative: float) -> None:
    for key, value in vars(one).items():
        other = vars(two)[key]
        if value is None:
            assert other is None
        else:
            size = float(value.double().abs().max())
            torch.testing.assert_close(value, other, rtol=relative, atol=relative * size)


def slow_sums(features: torch.Tensor, labels: torch.Tensor) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Counts, class sums and the Gram matrix, one example and one number at a time."""
    counts = [0] * CLASSES
    dims = features.shape[1]
    sums, gram = np.zeros((CLASSES, dims)), np.zeros((dims, dims))
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        counts[label] += 1
        for i in range(dims):
            sums[label, i] += row[i]
            for j in range(dims):
                gram[i, j] += row[i] * row[j]
    return counts, sums, gram


def test_sums_agree_with_their_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when examples are taken a few at a time."""
    monkeypatch.setattr("kdfed.closed_form.sums._AT_ONCE", 7)
    features, labels = some_examples()
    counts, sums, gram = slow_sums(features, labels)
    fast = sums_of(features, labels, CLASSES, CLASSIFICATION)
    assert fast.counts_C.tolist() == counts
    np.testing.assert_allclose(fast.sums_RD, sums, rtol=1e-12)
    assert fast.gram_DD is not None
    np.testing.assert_allclose(fast.gram_DD, gram, rtol=1e-12)


def test_worked_sums_of_a_regression() -> None:
    """Features (1, 2) and (3, 0) with labels 2 and -1: sums (4, 2) and 2 (1, 2) - (3, 0) = (-1, 4), labels 1
    and 5."""
    sums = sums_of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([2.0, -1.0]), 1, REGRESSION)
    assert sums.counts_C.tolist() == [2]
    assert sums.sums_RD.tolist() == [[4, 2], [-1, 4]]
    assert sums.labels is not None
    assert sums.labels.tolist() == [1, 5]
    assert sums.gram_DD is not None
    assert sums.gram_DD.tolist() == [[10, 2], [2, 4]]


def test_worked_means_and_scatter_of_sums() -> None:
    """Class 0 has (0, 0) and (2, 0), class 1 has (4, 3), class 2 nobody. The mean of all is (2, 1)."""
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 3.0]])
    sums = sums_of(features, torch.tensor([0, 0, 1]), 3, CLASSIFICATION)
    assert sums.mean_D.tolist() == [2, 1]
    assert sums.means_CD.tolist() == [[1, 0], [4, 3], [2, 1]]
    assert sums.centred_gram().tolist() == [[8, 6], [6, 6]]
    assert sums.within_gram().tolist() == [[2, 0], [0, 0]]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_sums_depend_neither_on_the_partition_nor_on_the_order(name: str, task: Task) -> None:
    head = HEADS.find(name)(upload="float64")
    features, labels = some_examples()
    labels = labels if task is CLASSIFICATION else numbers_for(features)
    whole = summed(head, features, labels, task=task)
    for parts in partitions_of(len(labels)):
        same(summed(head, features, labels, parts, task), whole, 1e-12)
        same(summed(head, features, labels, parts[::-1], task), whole, 1e-12)


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize(("name", "task"), CASES)
def test_what_is_sent_has_the_shapes_of_the_specification(upload: Upload, name: str, task: Task) -> None:
    head = HEADS.find(name)(upload=upload)
    features, labels = some_examples()
    labels = labels if task is CLASSIFICATION else numbers_for(features)
    arrays = head.statistics(features, labels, CLASSES, task, 0)
    assert spec_of(arrays) == head.spec(DIMS, CLASSES, task)


@pytest.mark.parametrize(
    ("head", "dims", "expected"),
    [  # 8 C + b C D + b D (D + 1) / 2, with C = 10; the float16 ones have two scales a feature, 4 bytes each
        (Ridge(), 1280, 80 + 51_200 + 3_279_360),
        (Ridge(), 128, 80 + 5_120 + 33_024),
        (Lda(upload="float64"), 512, 80 + 40_960 + 1_050_624),
        (Ridge(upload="float16"), 1280, 80 + 25_600 + 1_639_680 + 2 * 5_120),
        (Ridge(dims=256), 1280, 80 + 10_240 + 131_584),
        (Ridge(dims=2000), 1280, 80 + 51_200 + 3_279_360),
        (ClassMeans(), 1280, 80 + 51_200),
        (ClassMeans(upload="float16"), 1280, 80 + 25_600 + 5_120),
    ],
)
def test_bytes_follow_from_the_shapes(head: ClosedFormHead, dims: int, expected: int) -> None:
    arrays = head.statistics(torch.ones(2, dims), torch.tensor([0, 9]), 10, CLASSIFICATION, 0)
    assert sum(array.nbytes for array in arrays.values()) == expected


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_what_arrives_is_what_was_sent_up_to_rounding(upload: Upload, size: float) -> None:
    """Each product within the rounding of the two features' own sizes; so a large feature drowns no small
    one."""
    features, labels = some_examples()
    features = size * features * torch.logspace(-3, 3, DIMS)
    exact = sums_of(features, labels, CLASSES, CLASSIFICATION)
    arrived = summed(Ridge(upload=upload), features, labels)
    assert exact.gram_DD is not None
    assert arrived.gram_DD is not None
    lengths = exact.gram_DD.diagonal().sqrt()
    error = (arrived.gram_DD - exact.gram_DD).abs() / torch.outer(lengths, lengths)
    assert error.max() <= EPSILON[upload]
    most = exact.sums_RD.abs().amax(0)
    assert ((arrived.sums_RD - exact.sums_RD).abs() / most).max() <= EPSILON[upload]
    assert upload == "float64" or error.max() > 0


def test_features_that_are_too_large_for_the_upload_are_refused() -> None:
    features, labels = torch.full((3, 2), 1e20), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(
        KdfedError, match=r"can be sent as float32, got larger ones \(gram\).*upload: float64"
    ):
        Ridge().statistics(features, labels, 2, CLASSIFICATION, 0)
    assert summed(Ridge(upload="float64"), features, labels, classes=2).examples == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features, labels = some_examples(5)
    features[3, 2] = bad
    with pytest.raises(KdfedError, match="got infinity or NaN in 1 of 5 examples"):
        Ridge().statistics(features, labels, CLASSES, CLASSIFICATION, 0)


def test_labels_and_shapes_that_do_not_fit_are_refused() -> None:
    features, labels = some_examples(5)
    with pytest.raises(KdfedError, match=r"labels from 0 to 1, got 0 to 3"):
        Ridge().statistics(features, torch.tensor([0, 1, 3, 1, 0]), 2, CLASSIFICATION, 0)
    with pytest.raises(KdfedError, match=r"shape \(5, 6\) and labels of shape \(4,\)"):
        Ridge().statistics(features, labels[:4], CLASSES, CLASSIFICATION, 0)
    with pytest.raises(KdfedError, match=r"features of shape \(30,\)"):
        Ridge().statistics(features.flatten(), labels, CLASSES, CLASSIFICATION, 0)


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("name", list(HEADS))
def test_a_participant_without_examples_adds_nothing(upload: Upload, name: str) -> None:
    head = HEADS.find(name)(upload=upload)
    features, labels = some_examples()
    nothing = summed(head, features[:0], labels[:0])
    assert nothing.examples == 0
    same(summed(head, features, labels) + nothing, summed(head, features, labels), 0.0)


def test_sums_of_other_shapes_are_not_added() -> None:
    features, labels = some_examples()
    with pytest.raises(KdfedError, match="expected sums of the shapes"):
        summed(Ridge(), features, labels) + summed(Ridge(), features[:, :3], labels)
    with pytest.raises(KdfedError, match="expected sums of the shapes"):
        summed(Ridge(), features, labels) + summed(ClassMeans(), features, labels)


# ----------------------------------------------------------------------------- lies


def lie(key: str, value: object, upload: Upload = "float32", task: Task = CLASSIFICATION) -> str | None:
    features, labels = some_examples()
    head = Ridge(upload=upload)
    numbers = labels if task is CLASSIFICATION else numbers_for(features)
    arrays = {**head.statistics(features, numbers, CLASSES, task, 0)}
    arrays[key] = np.array(value, dtype=arrays[key].dtype).reshape(np.shape(value))
    return head.problem_with(arrays, DIMS, CLASSES, task, len(labels))


def changed(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def honest(key: str, upload: Upload = "float32", task: Task = CLASSIFICATION) -> np.ndarray:
    features, labels = some_examples()
    numbers = labels if task is CLASSIFICATION else numbers_for(features)
    return Ridge(upload=upload).statistics(features, numbers, CLASSES, task, 0)[key]


def test_what_cannot_be_sums_is_named() -> None:
    gram, sums = honest("gram"), honest("sums")
    assert "counts of 60 examples in all, got [70, -10, 0, 0]" in str(lie("counts", [70, -10, 0, 0]))
    assert "counts of 60 examples in all" in str(lie("counts", [60, 1, 0, 0]))
    assert "0 for classes without an example" in str(lie("counts", [60, 0, 0, 0]))
    assert "on the diagonal of the Gram matrix" in str(lie("gram", changed(gram, (0,), -1.0)))
    assert "larger than the features allow" in str(lie("gram", changed(gram, (1,), 1e6)))
    assert "larger ones than the Gram matrix allows" in str(lie("sums", changed(sums, (0, 0), 1e6)))
    assert "not finite: gram" in str(lie("gram", changed(gram, (0,), np.nan)))
    assert "wrong shape of gram: expected (21,), got (20,)" in str(lie("gram", gram[:20]))
    scale = honest("gram-scale", "float16")
    assert "scales above 0, got -1 (gram-scale)" in str(
        lie("gram-scale", changed(scale, (0,), -1.0), "float16")
    )
    assert "sums of 60 labels and of their squares" in str(lie("labels", [100.0, 1.0], task=REGRESSION))


@pytest.mark.parametrize("upload", UPLOADS)
def test_features_and_labels_may_be_as_large_as_the_server_says(upload: Upload) -> None:
    """Features (3, 4) and (0, 5) have a mean squared length of 25; labels 1 and 3 a mean square of 5."""
    features = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    head, labels = Ridge(upload=upload), torch.tensor([1.0, 3.0])
    assert head.size(features, 0) == 25
    cases = ((CLASSIFICATION, torch.tensor([0, 1]), 2), (REGRESSION, labels, 1))
    for task, wanted, classes in cases:
        arrays = head.statistics(features, wanted, classes, task, 0)
        for most, refused in ((25.1, False), (24.9, True)):
            problem = head.problem_with(arrays, 2, classes, task, 2, most)
            assert (problem is not None) == refused
    assert problem == "expected features of size 4.99 at most, in root mean square, got 5"
    assert head.problem_with(arrays, 2, 1, REGRESSION, 2, most_label=5.1) is None
    problem = head.problem_with(arrays, 2, 1, REGRESSION, 2, most_label=4.9)
    assert problem == "expected labels of size 2.21 at most, in root mean square, got 2.24"


def test_without_a_gram_matrix_the_means_of_classes_may_not_be_larger() -> None:
    """The mean of class 0 is (3, 4), that of class 1 is (0, 1): (2 * 25 + 1) / 3 = 17."""
    features = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    head = ClassMeans()
    arrays = head.statistics(features, torch.tensor([0, 0, 1]), 3, CLASSIFICATION, 0)
    assert head.problem_with(arrays, 2, 3, CLASSIFICATION, 3, 17.1) is None
    assert "features of size 4.11 at most" in str(head.problem_with(arrays, 2, 3, CLASSIFICATION, 3, 16.9))


def test_the_size_of_features_is_that_of_those_that_are_kept() -> None:
    features = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    assert ClassMeans(dims=2, projection="pool").size(features, 0) == 2**2 + 6**2


@pytest.mark.parametrize("upload", UPLOADS)
def test_the_checks_let_every_true_sum_pass(upload: Upload) -> None:
    """Also where the bounds hold with equality: constant features, one example, one class, features of 0."""
    head = Ridge(upload=upload)
    generator = torch.Generator().manual_seed(0)
    for features in (
        torch.full((9, 5), 0.1),
        torch.randn(1, 5, generator=generator),
        torch.zeros(4, 5),
        1e6 * torch.rand(300, 5, generator=generator),
        5 * torch.rand(30, generator=generator).expand(100, 30),
        torch.randn(50, 1, generator=generator).expand(50, 5) * torch.logspace(-8, 8, 5),
    ):
        for task in (CLASSIFICATION, REGRESSION):
            labels = torch.zeros(len(features), dtype=torch.int64)
            numbers = (
                labels if task is CLASSIFICATION else features[:, 0] / features[:, 0].abs().max().clamp_min(1)
            )
            arrays = head.statistics(features, numbers, CLASSES, task, 0)
            assert head.problem_with(arrays, features.shape[1], CLASSES, task, len(features)) is None


def test_what_is_sent_stands_alone() -> None:
    """Arrays of the specification only, in the memory order that a message has."""
    features, labels = some_examples()
    sums = sums_of(features, labels, CLASSES, CLASSIFICATION)
    for upload in UPLOADS:
        arrays = encoded(sums, upload)
        assert problem_with_arrays(arrays, Ridge(upload=upload).spec(DIMS, CLASSES, CLASSIFICATION)) is None
        assert all(array.flags["C_CONTIGUOUS"] for array in arrays.values())
