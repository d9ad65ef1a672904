from __future__ import annotations

import random
import tracemalloc
import warnings
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kdfed.data import prepare
from kdfed.errors import DataError
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
    values = {"kind": kind, "participants": participants, "min-examples": minimum, **KINDS[kind], **keys}
    adapter: TypeAdapter[PartitionBase] = TypeAdapter(PartitionBase)
    return adapter.validate_python(values, by_alias=True)


def deal(kind: str, participants: int = 20, minimum: int = 1, seed: int = 0, **keys: float) -> Partition:
    return make_partition(asked(kind, participants, minimum, **keys), LABELS, POOL, 10, seed)


def counts(partition: Partition) -> np.ndarray:
    return class_counts(partition, LABELS, 10)


def sizes(partition: Partition) -> np.ndarray:
    assert partition.sizes.tolist() == [len(part) for part in partition.indices]
    return partition.sizes


# ----------------------------------------------------------------------------- laws of every kind


@pytest.mark.parametrize("kind", PARTITIONS)
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


@pytest.mark.parametrize("kind", PARTITIONS)
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


@pytest.mark.parametrize("kind", PARTITIONS)
def test_one_participant_holds_the_whole_pool(kind: str) -> None:
    keys = {"classes": 10} if "classes" in KINDS[kind] else {}
    assert np.array_equal(deal(kind, 1, **keys).indices[0], POOL)


@pytest.mark.parametrize("kind", PARTITIONS)
def test_as_many_participants_as_examples_hold_one_each(kind: str) -> None:
    keys = {"classes": 1} if "classes" in KINDS[kind] else {}
    partition = make_partition(asked(kind, 200, **keys), np.arange(200) % 10, np.arange(200), 10, 0)
    assert (sizes(partition) == 1).all()


@pytest.mark.parametrize("kind", PARTITIONS)
def test_hundreds_of_participants_are_dealt_without_a_word(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    deal(kind)  # the first call imports
    labels = np.arange(60_000) % 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_partition(asked(kind, 300, 10), labels, np.arange(50_000), 10, 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", PARTITIONS)
def test_more_participants_than_examples_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"as examples for them \(2500 after .* got 2501") as caught:
        deal(kind, len(POOL) + 1)
    assert caught.value.key == "partition.participants"


@pytest.mark.parametrize("kind", PARTITIONS)
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


# ----------------------------------------------------------------------------- each kind


def test_uniform_sizes_differ_by_one_at_most_and_labels_are_mixed() -> None:
    partition = deal("uniform", 7)
    assert np.ptp(sizes(partition)) == 1
    assert counts(partition).min() > 15  # 2500 / 7 / 10 = 36 expected, standard deviation below 6


def test_quantity_skew_has_unequal_sizes_of_equal_labels() -> None:
    partition = deal("quantity-skew", 10, alpha=0.5)
    assert sizes(partition).max() > 2 * np.median(sizes(partition))
    largest = counts(partition)[sizes(partition).argmax()]
    assert abs(largest / largest.sum() - 0.1).max() < 0.05


def test_a_large_alpha_makes_quantity_skew_uniform() -> None:
    assert np.ptp(sizes(deal("quantity-skew", 10, alpha=1e6))) <= 6


def test_a_large_alpha_makes_dirichlet_uniform_and_a_small_one_gives_classes_away_whole() -> None:
    even = counts(deal("dirichlet", 10, alpha=1e6))
    assert abs(even - np.bincount(LABELS[POOL]) / 10).max() <= 1.5
    alone = counts(deal("dirichlet", 10, minimum=1, alpha=1e-5))
    assert (alone.max(axis=0) / alone.sum(axis=0)).mean() > 0.95


def test_dirichlet_agrees_with_a_slow_twin_on_the_library_itself() -> None:
    """The same draw on a Hugging Face table with its own selection, cut class by class."""
    import datasets
    from flwr_datasets.partitioner import DirichletPartitioner

    from kdfed.seeding import numpy_generator

    generator = numpy_generator(4, "partition")
    order = generator.permutation(POOL)
    partitioner = DirichletPartitioner(
        num_partitions=6,
        partition_by="label",
        alpha=0.5,
        min_partition_size=0,
        self_balancing=False,
        seed=int(generator.integers(2**32)),
    )
    partitioner.dataset = datasets.Dataset.from_dict({"label": LABELS[order], "index": order})
    twin = [sorted(partitioner.load_partition(part)["index"]) for part in range(6)]
    mine = deal("dirichlet", 6, seed=4, alpha=0.5)
    assert mine.moved == 0
    assert [part.tolist() for part in mine.indices] == twin


def test_uniform_agrees_with_the_librarys_partitioner() -> None:
    import datasets
    from flwr_datasets.partitioner import IidPartitioner

    from kdfed.seeding import numpy_generator

    partitioner = IidPartitioner(7)
    order = numpy_generator(0, "partition").permutation(POOL)
    partitioner.dataset = datasets.Dataset.from_dict({"index": order})
    twin = [sorted(partitioner.load_partition(part)["index"]) for part in range(7)]
    assert [part.tolist() for part in deal("uniform", 7).indices] == twin


@pytest.mark.parametrize("participants", [4, 5, 20, 33, 100])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 10])
def test_k_classes_gives_everyone_exactly_k(participants: int, k: int) -> None:
    held = counts(deal("k-classes", participants, classes=k)) > 0
    assert (held.sum(axis=1) == k).all()
    assert np.ptp(held.sum(axis=0)) <= 1  # and every class has as many owners, up to one


def test_k_classes_is_disjoint_at_the_extreme_and_leaves_no_class_over() -> None:
    held = counts(deal("k-classes", 5, classes=2)) > 0
    assert (held.sum(axis=0) == 1).all()


def test_k_classes_with_few_participants_leaves_the_other_classes_unused() -> None:
    """2 participants x 2 classes hold 4 of 10 classes; the examples of the other 6 are counted."""
    partition = deal("k-classes", 2, classes=2)
    held = counts(partition) > 0
    assert held.sum() == 4
    assert held.sum(axis=0).max() == 1
    assert partition.unused == len(POOL) - sizes(partition).sum() > 0


def test_k_classes_makes_many_pairs_of_classes() -> None:
    held = counts(deal("k-classes", 100, classes=2)) > 0
    assert len(np.unique(held, axis=0)) > 20


def test_k_above_the_number_of_classes_is_refused() -> None:
    for kind in ("k-classes", "label-overlap"):
        with pytest.raises(DataError, match="at most the 10 classes of the data, got 11") as caught:
            deal(kind, classes=11)
        assert caught.value.key == "partition.classes"


def test_more_shards_of_a_class_than_examples_are_refused() -> None:
    labels = np.repeat([0, 1], [3, 97])
    with pytest.raises(DataError, match="cannot deal 100 examples") as caught:
        make_partition(asked("k-classes", 20, classes=2), labels, np.arange(100), 2, 0)
    assert caught.value.key == "partition.participants"


def test_without_overlap_groups_of_classes_are_disjoint() -> None:
    held = counts(deal("label-overlap", 10, classes=2, overlap=0)) > 0
    assert (held.sum(axis=1) == 2).all()
    for one in held:
        for other in held:
            assert (one == other).all() or not (one & other).any()


def test_full_overlap_is_uniform() -> None:
    partition = deal("label-overlap", 7, overlap=1)
    assert np.ptp(sizes(partition)) <= 1
    assert counts(partition).min() > 15


def test_the_overlap_is_the_share_that_comes_from_everybodys_classes() -> None:
    """Of an overlap of 0.5, 8 in 10 classes are not one's own: 0.5 x 0.8 = 0.4 are foreign."""
    table = counts(deal("label-overlap", 10, classes=2, overlap=0.5))
    own = np.sort(table, axis=1)[:, -2:].sum()
    assert abs(1 - own / table.sum() - 0.4) < 0.03


def test_a_group_without_a_participant_leaves_its_own_examples_unused() -> None:
    """3 participants own 3 of 5 groups; 0.8 of the examples of the other 2 groups are left, 0.32 of all."""
    partition = deal("label-overlap", 3, classes=2, overlap=0.2)
    assert abs(partition.unused / len(POOL) - 0.32) < 0.02


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


def test_moves_keep_the_k_classes_of_everyone() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(5, size=2000, p=[0.05, 0.1, 0.2, 0.25, 0.4])
    partition = make_partition(asked("k-classes", 20, 45, classes=2), labels, np.arange(2000), 5, 0)
    held = class_counts(partition, labels, 5) > 0
    assert partition.moved > 0
    assert (held.sum(axis=1) == 2).all()


def test_a_minimum_that_would_change_classes_is_refused() -> None:
    labels = np.repeat([0, 1], [10, 90])
    with pytest.raises(DataError, match="without changing its classes") as caught:
        make_partition(asked("k-classes", 2, 20, classes=1), labels, np.arange(100), 2, 0)
    assert caught.value.key == "partition.min-examples"


def test_a_minimum_that_what_is_held_cannot_meet_is_refused() -> None:
    """2 participants own 2 of 5 groups, 1000 of 2500 examples: enough for the pool, not for 600 each."""
    with pytest.raises(DataError, match="cannot give every participant 600 examples: lower"):
        deal("label-overlap", 2, 600, classes=2, overlap=0)


def test_a_missing_flwr_datasets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(DataError, match="needs the package flwr-datasets"):
        deal("dirichlet")


@pytest.mark.parametrize("base", ["uniform", "label-overlap", "dirichlet"])
def test_a_kind_that_nothing_deals_is_refused_and_never_dealt_like_another(base: str) -> None:
    """Settings of one's own, derived from a kind that is dealt, or from none."""
    known = asked(base)

    class Own(type(known)):  # type: ignore[misc]
        kind: Literal["own"]

    own = Own.model_validate({**known.model_dump(), "kind": "own"})
    with pytest.raises(DataError, match=r"partition\.kind: expected one of uniform, .*, got 'own'") as caught:
        make_partition(own, LABELS, POOL, 10, 0)
    assert caught.value.key == "partition.kind"
