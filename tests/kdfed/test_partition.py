from __future__ import annotations

import random
import tracemalloc
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfed.data import prepare
from kdfed.errors import DataError, KdfedError
from kdfed.partition import Partition, class_counts, make_partition, partition_of
from kdfed.partitions import PARTITIONS, PartitionBase
from kdfed.settings import DataSettings

KINDS = {
    "uniform": {},
    "quantity-skew": {"alpha": 0.3},
    "label-overlap": {"classes": 2, "overlap": 0.25},
    "k-classes": {"classes": 3},
    "dirichlet": {"alpha": 0.1},
}
LABELS = np.random.default_rng(0).permutation(np.arange(3000) % 10)
POOL = np.arange(500, 3000)


def asked(kind: str, participants: int = 20, minimum: int = 1, **keys: float) -> PartitionBase:
    values = {"participants": participants, "min_examples": minimum, **KINDS[kind], **keys}
    return PARTITIONS.find(kind)(**values)


def deal(kind: str, participants: int = 20, minimum: int = 1, seed: int = 0, **keys: float) -> Partition:
    return make_partition(asked(kind, participants, minimum, **keys), LABELS, POOL, 10, seed)


def counts(partition: Partition) -> np.ndarray:
    return class_counts(partition, LABELS, 10)


def sizes(partition: Partition) -> np.ndarray:
    assert partition.sizes.tolist() == [len(part) for part in partition.indices]
    return partition.sizes


# ----------------------------------------------------------------------------- laws of every kind


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(participants=st.integers(5, 60), minimum=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_every_example_of_the_pool_is_held_once(
    kind: str, participants: int, minimum: int, seed: int
) -> None:
    partition = deal(kind, participants, minimum, seed)
    assert len(partition.indices) == participants
    assert np.array_equal(np.sort(np.concatenate(partition.indices)), POOL)
    assert sizes(partition).min() >= minimum
    assert partition.unused == 0
    assert all((np.diff(part) > 0).all() for part in partition.indices)
    assert all(part.dtype == np.int64 for part in partition.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_the_deal_depends_on_the_seed_alone(kind: str) -> None:
    np.random.seed(1)
    random.seed(1)
    state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    one = deal(kind)
    assert state == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]
    np.random.seed(2)
    random.seed(2)
    same = make_partition(asked(kind), LABELS, POOL[::-1], 10, 0)
    other = deal(kind, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(one.indices, same.indices, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one.indices, other.indices, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_one_participant_holds_the_whole_pool(kind: str) -> None:
    keys = {"classes": 10} if "classes" in KINDS[kind] else {}
    assert np.array_equal(deal(kind, 1, **keys).indices[0], POOL)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_participants_as_examples_hold_one_each(kind: str) -> None:
    keys = {"classes": 1} if "classes" in KINDS[kind] else {}
    partition = make_partition(asked(kind, 200, **keys), np.arange(200) % 10, np.arange(200), 10, 0)
    assert (sizes(partition) == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_participants_are_dealt_without_a_word(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    deal(kind)  # the first call imports
    labels = np.arange(60_000) % 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_partition(asked(kind, 300, 10), labels, np.arange(50_000), 10, 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_more_participants_than_examples_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"as examples for them \(2500 after .* got 2501") as caught:
        deal(kind, len(POOL) + 1)
    assert caught.value.key == "partition.participants"


@pytest.mark.parametrize("kind", KINDS)
def test_a_minimum_that_the_pool_cannot_meet_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="20 participants x min-examples 126 need 2520 examples") as caught:
        deal(kind, 20, 126)
    assert caught.value.key == "partition.min-examples"


def test_class_counts_agree_with_a_loop() -> None:
    partition = deal("dirichlet")
    twin = [[sum(LABELS[i] == k for i in part) for k in range(10)] for part in partition.indices]
    assert counts(partition).tolist() == twin
    assert class_counts(partition, LABELS, 10, participants=7).tolist() == twin[:7]
    assert class_counts(partition, LABELS, 10, participants=100).tolist() == twin


def test_indices_are_a_sequence_of_views() -> None:
    partition = deal("dirichlet")
    assert len(partition.indices) == len(partition) == 20
    assert np.array_equal(partition.indices[-1], list(partition.indices)[19])
    assert [len(part) for part in partition.indices[3:5]] == partition.sizes[3:5].tolist()
    assert all(np.shares_memory(part, partition.examples) for part in partition.indices)
    with pytest.raises(IndexError):
        partition.indices[20]


def test_a_partition_is_made_once_a_process_for_the_same_arguments() -> None:
    data = prepare(DataSettings(source="digits", limit=400))
    one, two, other = (partition_of(data, asked("uniform", 5), seed) for seed in (0, 0, 1))
    assert one is two
    assert one is not other
    direct = make_partition(asked("uniform", 5), data.dataset.labels, data.splits.train, 10, 0)
    assert np.array_equal(one.examples, direct.examples)


def test_a_million_participants_are_dealt_without_an_array_each() -> None:
    """Two examples each; what comes in are 32 MB, and a million arrays would be 112 MB."""
    labels, pool = np.arange(2_000_000) % 10, np.arange(2_000_000)
    tracemalloc.start()
    partition = make_partition(asked("uniform", 1_000_000), labels, pool, 10, 0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 26e6
    assert peak < 100e6
    assert (partition.sizes == 2).all()
    assert np.array_equal(np.sort(partition.examples), pool)


def test_k_above_the_number_of_classes_is_refused() -> None:
    for kind in ("k-classes", "label-overlap"):
        with pytest.raises(DataError, match="at most the 10 classes of the data, got 11") as caught:
            deal(kind, classes=11)
        assert caught.value.key == "partition.classes"


# ----------------------------------------------------------------------------- the minimum


def test_single_examples_move_from_the_largest_and_are_counted() -> None:
    """Whoever had less than the minimum has exactly it; the missing examples are the number moved."""
    before, after = deal("dirichlet", 60, 1, alpha=0.05), deal("dirichlet", 60, 15, alpha=0.05)
    assert before.moved < after.moved
    small = sizes(before) < 15
    assert (sizes(after)[small] == 15).all()
    missing = (15 - sizes(before)[small]).sum()
    assert after.moved - before.moved <= missing <= after.moved
    assert sizes(after).max() < sizes(before).max()


def test_nothing_moves_when_everyone_has_enough() -> None:
    assert deal("uniform", 20, 125).moved == 0


def test_moves_agree_with_a_slow_twin() -> None:
    """Each missing example is the last of whoever holds most, the first among equals."""
    few, many = deal("dirichlet", 60, 1, alpha=0.05), deal("dirichlet", 60, 15, alpha=0.05)
    left = sizes(deal_without_minimum()).copy()
    for minimum, dealt in ((1, few), (15, many)):
        twin, moved = left.copy(), 0
        for receiver in range(60):
            while twin[receiver] < minimum:
                twin[twin.argmax()] -= 1
                twin[receiver] += 1
                moved += 1
        assert sizes(dealt).tolist() == twin.tolist()
        assert dealt.moved == moved


def deal_without_minimum() -> Partition:
    settings = asked("dirichlet", 60, alpha=0.05).model_copy(update={"min_examples": 0})
    return make_partition(settings, LABELS, POOL, 10, 0)


def test_a_minimum_that_what_is_held_cannot_meet_is_refused() -> None:
    """2 participants own 2 of 5 groups, 1000 of 2500 examples: enough for the pool, not for 600 each."""
    with pytest.raises(DataError, match="cannot give every participant 600 examples: lower"):
        deal("label-overlap", 2, 600, classes=2, overlap=0)


# ----------------------------------------------------------------------------- somebody's own partition


class Own(PartitionBase):
    """Deals whatever a test says."""

    kind: str = "own"
    dealt: tuple[Any, ...] = ()

    def deal(self, labels: np.ndarray, classes: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        if not self.dealt:
            raise ValueError("nothing to deal")
        return [np.array(part) for part in self.dealt]


def own(*dealt: Sequence[float]) -> Partition:
    return make_partition(Own(participants=2, dealt=dealt), LABELS, POOL, 10, 0)


def test_a_partition_of_ones_own_is_dealt_as_it_says_and_the_rest_is_counted() -> None:
    partition = own([4, 0], [2])
    assert partition.sizes.tolist() == [2, 1]
    assert partition.unused == len(POOL) - 3
    assert set(partition.examples) < set(POOL)


@pytest.mark.parametrize(
    ("dealt", "got"),
    [
        ([[0, 1]], "got int64 for 1 participants"),
        ([[0], [1], [2]], "got int64 for 3 participants"),
        ([[0.0], [1.0]], "got float64 for 2 participants"),
        ([[0], [2500]], "got 0 to 2500"),
        ([[-1], [0]], "got -1 to 0"),
        ([[0, 7], [7]], "got 7 twice"),
    ],
)
def test_what_a_partition_of_ones_own_deals_by_mistake_is_refused(dealt: Any, got: str) -> None:
    expected = "partition 'own': expected indices from 0 to 2499, each dealt once at most, to 2 participants"
    with pytest.raises(DataError, match=f"{expected}, {got}") as caught:
        own(*dealt)
    assert caught.value.key == "partition.kind"


def test_a_partition_of_ones_own_that_fails_is_one_mistake_with_file_and_line() -> None:
    with pytest.raises(
        DataError,
        match=r"partition 'own': expected a deal; it raised ValueError: nothing .*test_partition\.py, line",
    ) as caught:
        own()
    assert caught.value.key == "partition.kind"


def test_a_partition_that_does_not_say_how_it_deals_is_none() -> None:
    """It can never deal like another in its stead."""

    class Undealt(PartitionBase):
        kind: str = "undealt"

    with pytest.raises(TypeError, match=r"abstract method '?deal"):
        Undealt()


def test_the_registry_names_each_partition_as_its_settings_do() -> None:
    assert {name: kind.model_fields["kind"].default for name, kind in PARTITIONS.members.items()} == {
        name: name for name in [*KINDS, "column", "devices"]
    }
    with pytest.raises(KdfedError, match=r"expected one of uniform, .*, got 'own'"):
        PARTITIONS.find("own")
