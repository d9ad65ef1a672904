from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfed.data import Dataset, split
from kdfed.data.splits import bin_edges, strata_of, stratified_order
from kdfed.errors import DataError
from kdfed.partition import make_partition
from kdfed.partitions import PartitionBase, UniformPartition
from kdfed.seeding import numpy_generator
from kdfed.settings import DataSettings, SplitSettings


def dataset(labels: np.ndarray, test: np.ndarray | None = None) -> Dataset:
    return Dataset(np.zeros((len(labels), 2), np.float32), labels, tuple("abcdefghij"), test)


def balanced(each: int, classes: int = 10) -> np.ndarray:
    return np.tile(np.arange(classes), each)


def asked(**splits: object) -> DataSettings:
    return DataSettings(source="digits", splits=SplitSettings(**splits))  # type: ignore[arg-type]


def test_shares_are_of_all_examples() -> None:
    """Of 1000 examples: 100 test, 200 evaluation, 50 validation, 100 transfer by default, 550 are left."""
    parts = split(dataset(balanced(100)), asked())
    assert list(vars(parts)) == ["test", "evaluation", "validation", "transfer", "train"]
    assert [len(part) for part in vars(parts).values()] == [100, 200, 50, 100, 550]


def test_every_split_holds_every_class_in_proportion() -> None:
    labels = balanced(100)
    for part, size in zip(vars(split(dataset(labels), asked())).values(), (10, 20, 5, 10, 55), strict=True):
        counts = np.bincount(labels[part], minlength=10)
        assert abs(counts - size).max() <= 1


def test_every_slice_of_the_order_holds_every_class_in_proportion() -> None:
    """A class with share p has n p examples in a slice of length n, one more or one less at most."""
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = stratified_order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(100))
    for start in range(0, 100, 10):
        counts = np.bincount(labels[order[start : start + 10]], minlength=3)
        assert abs(counts - [6, 3, 1]).max() <= 1


def test_the_split_depends_on_its_own_seed_and_on_nothing_global() -> None:
    data = dataset(balanced(20))
    np.random.seed(1)
    one = split(data, asked(seed=3))
    np.random.seed(2)
    same, other = split(data, asked(seed=3)), split(data, asked(seed=4))
    assert np.array_equal(one.transfer, same.transfer)
    assert not np.array_equal(one.transfer, other.transfer)


def test_the_official_test_part_is_kept_and_the_shares_are_of_the_rest() -> None:
    """100 of 300 are the test part; of the other 200, a fifth is 40, a twentieth 10 and a tenth 20."""
    test = np.arange(50, 150)
    parts = split(dataset(balanced(30), test), asked(test="official"))
    assert np.array_equal(parts.test, test)
    sizes = [len(parts.evaluation), len(parts.validation), len(parts.transfer), len(parts.train)]
    assert sizes == [40, 10, 20, 130]


def test_a_source_without_a_test_part_is_told_so() -> None:
    with pytest.raises(DataError, match="has no test part of its own") as caught:
        split(dataset(balanced(30)), asked(test="official"))
    assert caught.value.key == "data.splits.test"


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="none for validation out of 4") as caught:
        split(dataset(np.arange(4)), asked(test=0.25, validation=0.01, transfer=0.25))
    assert caught.value.key == "data.splits"


def test_an_empty_evaluation_split_is_refused_unless_none_is_asked_for() -> None:
    with pytest.raises(DataError, match="none for evaluation out of 100"):
        split(dataset(balanced(10)), asked(evaluation=0.001))
    parts = split(dataset(balanced(10)), asked(evaluation=0.0))
    assert [len(part) for part in vars(parts).values()] == [10, 0, 5, 10, 75]


@pytest.mark.parametrize("changes", [{"validation": 0.2}, {"transfer": 0.3}])
def test_another_share_of_a_later_split_leaves_those_before_it_as_they_are(changes: dict[str, float]) -> None:
    """What is counted on stays the same when somebody tries another size of what is fitted on."""
    data = dataset(balanced(40))
    one, other = split(data, asked()), split(data, asked(**changes))
    assert np.array_equal(one.test, other.test)
    assert np.array_equal(one.evaluation, other.evaluation)
    assert not np.array_equal(one.train, other.train)


def test_without_an_evaluation_split_the_others_are_those_of_the_first_version() -> None:
    """Which cut test, validation, transfer and train, in this order: what a study's results rest on."""
    labels = balanced(40)
    shares = {"test": 0.2, "validation": 0.1, "transfer": 0.2}
    order = stratified_order(labels, numpy_generator(0, "split"))
    parts = split(dataset(labels), asked(evaluation=0.0, **shares))
    first = np.split(order, np.cumsum([80, 40, 80]))
    found = (parts.test, parts.validation, parts.transfer, parts.train)
    assert all(np.array_equal(np.sort(old), new) for old, new in zip(first, found, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 9), min_size=60, max_size=200),
    test=st.floats(0.1, 0.2),
    evaluation=st.floats(0.1, 0.2),
    validation=st.floats(0.1, 0.2),
    transfer=st.floats(0.1, 0.2),
    seed=st.integers(0, 5),
)
def test_no_split_overlaps_another_one_or_a_participant(
    labels: list[int], test: float, evaluation: float, validation: float, transfer: float, seed: int
) -> None:
    data = dataset(np.array(labels, dtype=np.int64))
    shares = {"test": test, "evaluation": evaluation, "validation": validation, "transfer": transfer}
    parts = split(data, asked(**shares, seed=seed))
    spread: PartitionBase = UniformPartition(kind="uniform", participants=3)
    held = make_partition(spread, data.labels, parts.train, 10, seed).indices
    everything = np.concatenate(
        [parts.test, parts.evaluation, parts.validation, parts.transfer, *held]
    )  # every example once: none of them overlaps
    assert np.array_equal(np.sort(everything), np.arange(len(labels)))


# ----------------------------------------------------------------------------- numbers


def test_bins_are_a_worked_example() -> None:
    """The deciles of 0..20 are 2, 4, ..., 18; an edge belongs to the bin above it."""
    numbers = np.arange(21, dtype=np.float32)
    assert bin_edges(numbers).tolist() == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert strata_of(numbers).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 9]
    assert strata_of(np.float32([-5, 2.5, 99]), numbers).tolist() == [0, 1, 9]


def test_equal_numbers_share_a_bin_and_no_bin_is_empty() -> None:
    numbers = np.repeat(np.float32([1, 2, 7]), 30)
    assert np.bincount(strata_of(numbers)).tolist() == [30, 30, 30]
    assert strata_of(np.full(5, 3, np.float32)).tolist() == [0] * 5


def test_every_split_holds_every_range_of_a_number_in_proportion() -> None:
    numbers = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    bins = strata_of(numbers)
    for part, size in zip(vars(split(dataset(numbers), asked())).values(), (10, 20, 5, 10, 55), strict=True):
        assert abs(np.bincount(bins[part], minlength=10) - size).max() <= 1
