"""Cohorts are cut, dealt to nodes and packed: pure functions, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfed.limits import Limits, Reach
from kdfed.messages import ARRAYS, COHORTS, CONFIG, SIMULATION, Cohorts, ReplyKind, item
from kdfed.private.flwr import identify
from strategies.parcels import (
    Cohort,
    Exchange,
    Parcel,
    content_of,
    cut,
    deal,
    deal_to_owners,
    kept,
    pack,
)

EXCHANGE = Exchange(phase="rounds", round=4, spec_of=lambda participant: {})
PARTICIPANTS = st.sets(st.integers(0, 99), min_size=1, max_size=30).map(sorted)
SIZES = st.integers(1, 8)


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


def everybody(cohorts: Sequence[Cohort]) -> list[int]:
    return list(chain(*cohorts))


def content(number: int) -> RecordDict:
    arrays = ArrayRecord({"w": torch.tensor([float(number)])})
    return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({"number": number})})


def messages_to(contents: dict[int, RecordDict]) -> dict[int, Message]:
    return {participant: Message(own, participant, "train") for participant, own in contents.items()}


# ----------------------------------------------------------------------------- cutting


@given(PARTICIPANTS, SIZES)
def test_everybody_is_in_one_cohort_in_order_and_all_but_the_last_are_full(participants, size):
    cohorts = cut(participants, size)
    assert everybody(cohorts) == participants
    assert {len(cohort) for cohort in cohorts[:-1]} <= {size}
    assert 1 <= len(cohorts[-1]) <= size
    assert cut([], size) == []


@given(PARTICIPANTS, SIZES, st.sets(st.integers(0, 99)))
def test_who_is_missing_moves_nobody_to_another_cohort(participants, size, there):
    cohorts = cut(participants, size)
    left = kept(cohorts, there)
    assert everybody(left) == [participant for participant in participants if participant in there]
    assert all(left)
    before = [next(index for index, cohort in enumerate(cohorts) if set(own) <= set(cohort)) for own in left]
    assert before == sorted(set(before)), "each is part of another one"


# ----------------------------------------------------------------------------- dealing


@given(PARTICIPANTS, SIZES, st.sets(st.integers(1, 10**6), min_size=1, max_size=40).map(sorted))
def test_nodes_get_neighbours_in_order_and_as_many_as_each_other(participants, size, nodes):
    cohorts = cut(participants, size)
    dealt = list(deal(cohorts, nodes))
    assert [cohort for _, mine in dealt for cohort in mine] == cohorts
    assert [node for node, _ in dealt] == nodes[: len(cohorts)], "nobody is idle while another has two"
    counts = [len(mine) for _, mine in dealt]
    assert max(counts) - min(counts) <= 1
    assert all(before >= after for before, after in pairwise(counts))


def test_nothing_is_dealt_where_nobody_is_there():
    assert list(deal([], [7, 8])) == []


def test_a_worked_deal():
    """Five cohorts among three nodes: two, two, one."""
    cohorts = cut(range(10), 2)
    assert list(deal(cohorts, [11, 12, 13])) == [
        (11, [(0, 1), (2, 3)]),
        (12, [(4, 5), (6, 7)]),
        (13, [(8, 9)]),
    ]


@given(PARTICIPANTS)
def test_a_device_gets_what_is_its_own(participants):
    roster = {participant: 1000 - participant for participant in range(100)}
    dealt = list(deal_to_owners(cut(participants, 1), roster))
    assert dealt == [(1000 - participant, [(participant,)]) for participant in participants]


def test_two_are_never_dealt_to_one_device():
    with pytest.raises(ValueError, match="too many values to unpack"):
        list(deal_to_owners([(0, 1)], {0: 10, 1: 11}))


# ----------------------------------------------------------------------------- packing


def packed(contents: dict[int, RecordDict], size: int = 2, reply: ReplyKind = "each") -> Parcel:
    return pack(EXCHANGE, 7, cut(sorted(contents), size), messages_to(contents), reply)


@given(st.dictionaries(st.integers(0, 99), st.integers(0, 3), min_size=1, max_size=12), SIZES)
@settings(max_examples=25, deadline=None)
def test_each_distinct_content_is_packed_once_and_everybody_finds_its_own(numbers, size):
    shared = {number: content(number) for number in set(numbers.values())}
    parcel = packed({participant: shared[number] for participant, number in numbers.items()}, size)
    assert list(parcel.participants) == sorted(numbers) == list(parcel.messages)
    told = content_of(parcel)
    cohorts = Cohorts.from_record(told[COHORTS])
    assert cohorts == parcel.cohorts
    assert len(told) == 2 * len(shared) + 1
    for participant, variant in zip(cohorts.participants, cohorts.variants, strict=True):
        own = item(told, variant, len(shared))
        assert own[CONFIG]["number"] == numbers[participant]
        assert own[ARRAYS] is shared[numbers[participant]][ARRAYS], "not a copy"


def test_equal_contents_are_one_only_where_they_are_the_same_object():
    """To compare them would mean to read every array of every participant."""
    shared = content(1)
    assert packed({0: shared, 1: shared}).cohorts.variants == (0, 0)
    assert packed({0: content(1), 1: content(1)}).cohorts.variants == (0, 1)


def test_keys_are_numbered_in_order_of_participants_and_plain_where_there_is_one_content():
    one, other = content(1), content(2)
    assert set(content_of(packed({3: one, 5: one}))) == {ARRAYS, CONFIG, COHORTS}
    told = content_of(packed({9: one, 3: other, 5: one}))
    assert set(told) == {"arrays-0", "config-0", "arrays-1", "config-1", COHORTS}
    assert [told[f"config-{index}"]["number"] for index in range(2)] == [2, 1]


def test_a_parcel_holds_the_messages_of_its_own_cohorts_alone():
    messages = messages_to(dict.fromkeys(range(6), content(1)))
    parcel = pack(EXCHANGE, 7, [(2, 3)], messages, "each")
    assert (parcel.node, parcel.exchange, parcel.messages) == (7, EXCHANGE, {2: messages[2], 3: messages[3]})
    assert (parcel.late, parcel.settled, parcel.results) == (False, False, [])


def test_what_a_simulation_is_told_is_beside_the_contents_and_a_copy():
    simulation = ConfigRecord({"seed": 3})
    told = content_of(packed({0: content(1)}), simulation)[SIMULATION]
    assert (dict(told), told is simulation) == ({"seed": 3}, False)
    assert SIMULATION not in content_of(packed({0: content(1)}))


@pytest.mark.parametrize(("reply", "bounded", "told"), [("mean", 1, 1), ("mean", 0, 0), ("each", 1, 0)])
def test_nodes_are_told_limits_where_they_sum_and_there_is_a_bound(reply, bounded, told):
    limits = Limits(50, 2.0, frozenset({"running_var"}))
    reach = Reach({"w": np.zeros(1)}, limits) if bounded else None
    asked: list[int] = []

    def reach_of(participant: int) -> Reach | None:
        asked.append(participant)
        return reach

    exchange = Exchange(phase="rounds", round=1, spec_of=lambda participant: {}, reach_of=reach_of)
    parcel = pack(exchange, 7, [(4, 5)], messages_to({4: content(1), 5: content(1)}), reply)
    assert parcel.cohorts.limits == (limits if told else None)
    assert asked == ([4] if reply == "mean" else []), "once a parcel, and not where nobody needs it"


@given(PARTICIPANTS, SIZES, st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_nodes_decide_about_nothing_but_who_gets_what(participants, size, count):
    contents = [content(number) for number in range(3)]
    messages = messages_to({participant: contents[participant % 3] for participant in participants})
    cohorts = cut(participants, size)
    parcels = [
        pack(EXCHANGE, node, mine, messages, "mean") for node, mine in deal(cohorts, range(1, count + 1))
    ]
    assert [cohort for parcel in parcels for cohort in parcel.cohorts.cohorts] == cohorts
    assert {p: message for parcel in parcels for p, message in parcel.messages.items()} == messages
    for parcel in parcels:
        told, variants = content_of(parcel), parcel.cohorts.variants
        own = [item(told, variant, max(variants) + 1)[CONFIG]["number"] for variant in variants]
        assert own == [participant % 3 for participant in parcel.participants]
