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
from kdfed.settings import DataSettings, SplitSettings


def dataset(labels: np.ndarray, test: np.ndarray | None = None) -> Dataset:
    return Dataset(np.zeros((len(labels), 2), np.float32), labels, tuple("abcdefghij"), test)


def balanced(each: int, classes: int = 10) -> np.ndarray:
    return np.tile(np.arange(classes), each)


def asked(**splits: object) -> DataSettings:
    return DataSettings(source="digits", splits=SplitSettings(**splits))  # type: ignore[arg-type]


def test_shares_are_of_all_examples() -> None:
    """Of 1000 examples: 150 test, 100 validation, 150 transfer by default, 600 are left."""
    parts = split(dataset(balanced(100)), asked())
    assert [len(part) for part in vars(parts).values()] == [150, 100, 150, 600]


def test_every_split_holds_every_class_in_proportion() -> None:
    labels = balanced(100)
    for part, size in zip(vars(split(dataset(labels), asked())).values(), (15, 10, 15, 60), strict=True):
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
    """100 of 300 are the test part; of the other 200, a tenth is 20 and 0.15 is 30."""
    test = np.arange(50, 150)
    parts = split(dataset(balanced(30), test), asked(test="official"))
    assert np.array_equal(parts.test, test)
    assert [len(parts.validation), len(parts.transfer), len(parts.train)] == [20, 30, 150]


def test_a_source_without_a_test_part_is_told_so() -> None:
    with pytest.raises(DataError, match="has no test part of its own") as caught:
        split(dataset(balanced(30)), asked(test="official"))
    assert caught.value.key == "data.splits.test"


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="none for validation out of 4") as caught:
        split(dataset(np.arange(4)), asked(test=0.25, validation=0.01, transfer=0.25))
    assert caught.value.key == "data.splits"


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 9), min_size=40, max_size=200),
    test=st.floats(0.1, 0.3),
    validation=st.floats(0.1, 0.3),
    transfer=st.floats(0.1, 0.3),
    seed=st.integers(0, 5),
)
def test_the_transfer_set_never_overlaps_a_participant_or_another_split(
    labels: list[int], test: float, validation: float, transfer: float, seed: int
) -> None:
    data = dataset(np.array(labels, dtype=np.int64))
    parts = split(data, asked(test=test, validation=validation, transfer=transfer, seed=seed))
    spread: PartitionBase = UniformPartition(kind="uniform", participants=3)
    held = make_partition(spread, data.labels, parts.train, 10, seed).indices
    for other in (parts.test, parts.validation, *held):
        assert not set(parts.transfer) & set(other)
    everything = np.concatenate([parts.test, parts.validation, parts.transfer, *held])
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
    for part, size in zip(vars(split(dataset(numbers), asked())).values(), (15, 10, 15, 60), strict=True):
        assert abs(np.bincount(bins[part], minlength=10) - size).max() <= 1
