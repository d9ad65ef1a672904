"""Replies are read, checked, summed and counted: an inbox that is fed by hand, without a network."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfed.arrays import Spec
from kdfed.averaging import WeightedMean
from kdfed.errors import MessageError
from kdfed.ledger import Costs, Ledger
from kdfed.limits import LabelCountLimits, Limits
from kdfed.messages import ARRAYS, COHORTS, METRICS, WARNINGS, Answers, ReplyKind, numbered
from kdfed.metrics import EVAL_ACCURACY, EVAL_LOSS, LABEL_COUNTS, LOCAL_STEPS, NUM_EXAMPLES, TRAIN_LOSS
from kdfed.private.flwr import error_reply, identify, name_message
from strategies.inbox import Inbox, bytes_of, read_reply
from strategies.parcels import Cohort, Exchange, Parcel, pack

SPEC: Spec = {"w": ((16,), "float64"), "n": ((), "int64")}
ROUND = Exchange(phase="rounds", round=1, spec_of=lambda participant: SPEC)
EVALUATION = Exchange(phase="evaluate", round=1, spec_of=lambda participant: {})
COHORTS_OF = (((0, 1), (2,)), ((3, 4),), ((5,), (6,)), ((7, 8),))
"""The cohorts of four parcels."""


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


# ----------------------------------------------------------------------------- by hand


def parcels_of(
    exchange: Exchange = ROUND,
    reply: ReplyKind = "each",
    cohorts: Sequence[Sequence[Cohort]] = COHORTS_OF,
) -> list[Parcel]:
    content = RecordDict()
    parcels = []
    for node, mine in enumerate(cohorts):
        messages = {
            participant: Message(content, participant, "train") for own in mine for participant in own
        }
        for participant, message in messages.items():
            name_message(message, f"m{participant}")
        parcels.append(pack(exchange, node, list(mine), messages, reply))
    return parcels


def result(participants: Sequence[int], **metrics: Any) -> RecordDict:
    """A participant's result, or a cohort's mean; what is in it depends on who."""
    generator = np.random.default_rng(list(participants))
    arrays = {
        key: Array(np.asarray(9 * generator.random(shape)).astype(dtype))
        for key, (shape, dtype) in SPEC.items()
    }
    numbers = {
        NUM_EXAMPLES: 10 * len(participants) + participants[0],
        TRAIN_LOSS: 0.5,
        LOCAL_STEPS: 2 * len(participants),
    }
    told = {key: value for key, value in {**numbers, **metrics}.items() if value is not None}
    return RecordDict({ARRAYS: ArrayRecord(arrays), METRICS: MetricRecord(told)})


def evaluated(participants: Sequence[int], **metrics: Any) -> RecordDict:
    numbers = {NUM_EXAMPLES: 10, EVAL_LOSS: 0.5, EVAL_ACCURACY: 0.75, **metrics}
    return RecordDict({METRICS: MetricRecord({key: v for key, v in numbers.items() if v is not None})})


def sent(parcel: Parcel) -> Message:
    message = Message(RecordDict(), parcel.node, "train")
    name_message(message, "network")
    return message


def reply_to(parcel: Parcel, make: Any = result, **changes: Any) -> Message:
    """The reply of an honest node; ``changes`` are the metrics of some participants, by ``p<number>``."""
    asked, content = parcel.cohorts, RecordDict()
    groups = asked.cohorts if asked.reply == "mean" else [(p,) for p in asked.participants]
    for index, group in enumerate(groups):
        own = make(group, **changes.get(f"p{group[0]}", {}))
        for key, record in own.items():
            content[numbered(key, index, len(groups))] = record
    index_of = {participant: index for index, group in enumerate(groups) for participant in group}
    steps = 2 if make is result else 0
    content[COHORTS] = Answers(
        asked.participants,
        tuple(index_of[p] for p in asked.participants),
        (steps,) * len(index_of),
        ("",) * len(index_of),
    ).to_record()
    return Message(content, reply_to=sent(parcel))


def inbox_for(parcels: Sequence[Parcel], **more: Any) -> tuple[Inbox, Ledger]:
    ledger = Ledger()
    inbox = Inbox(ledger, more.pop("limits", Limits()), **more)
    inbox.begin(parcels[0].exchange)
    inbox.expect(parcels)
    return inbox, ledger


def everybodys_ids(parcels: Sequence[Parcel]) -> list[str]:
    return [message.metadata.message_id for parcel in parcels for message in parcel.messages.values()]


def absences(inbox: Inbox) -> list[tuple[int, str]]:
    return [(absent.participant, absent.reason) for absent in inbox.report.absent]


def answers_to(replies: Sequence[Message]) -> list[str]:
    return [reply.metadata.reply_to_message_id for reply in replies]


# ----------------------------------------------------------------------------- sums


def summed_by_hand(groups: Sequence[Cohort]) -> dict[str, np.ndarray]:
    mean = WeightedMean(SPEC)
    for group in groups:
        own = result(group)
        for key in SPEC:
            mean.part(key)[:] = own[ARRAYS][key].numpy().reshape(-1)
        mean.add(own[METRICS][NUM_EXAMPLES])
    return mean.arrays()


GROUPS = [group for cohorts in COHORTS_OF for group in cohorts]


def test_the_order_of_sums_can_be_seen_in_their_bits():
    forwards, backwards = summed_by_hand(GROUPS)["w"], summed_by_hand(GROUPS[::-1])["w"]
    assert forwards.tobytes() != backwards.tobytes(), "else the next test could not fail"


@given(st.permutations(range(len(COHORTS_OF))))
@settings(max_examples=24, deadline=None)
def test_sums_are_taken_in_cohort_order_to_the_bit_whatever_the_order_of_replies(order):
    parcels = parcels_of(reply="mean")
    inbox, ledger = inbox_for(parcels)
    for place, index in enumerate(order):
        assert inbox.replies(everybodys_ids(parcels)) == [], "nothing is ready before the last"
        inbox.take(parcels[index], reply_to(parcels[index]))
        before = next((i for i in range(len(order)) if i not in order[: place + 1]), len(order))
        held = [bool(parcel.results) for parcel in parcels]
        assert held == [i in order[: place + 1] and i > before for i in range(len(order))]
    (mean,) = inbox.conclude(everybodys_ids(parcels))
    assert mean.metadata.reply_to_message_id == "m0"
    by_hand = summed_by_hand(GROUPS)
    for key, (shape, dtype) in SPEC.items():
        found = mean.content[ARRAYS][key].numpy()
        assert (found.shape, str(found.dtype)) == (shape, dtype)
        assert found.tobytes() == by_hand[key].astype(dtype).tobytes()
    examples = sum(result(group)[METRICS][NUM_EXAMPLES] for group in GROUPS)
    numbers = {NUM_EXAMPLES: examples, LOCAL_STEPS: 18, TRAIN_LOSS: 0.5}
    assert dict(mean.content[METRICS]) == pytest.approx(numbers)
    assert inbox.report.answered == list(range(9))
    assert ledger.by_phase()["rounds"].participant_uploads == 9


def test_what_was_summed_is_dropped_and_what_waits_is_not():
    parcels = parcels_of(reply="mean")
    inbox, _ = inbox_for(parcels)

    def taken(parcel: Parcel) -> weakref.ref[ArrayRecord]:
        reply = reply_to(parcel)
        arrays = weakref.ref(reply.content[numbered(ARRAYS, 0, len(parcel.cohorts.cohorts))])
        inbox.take(parcel, reply)
        return arrays

    second, first = taken(parcels[1]), None
    gc.collect()
    assert second() is not None
    first = taken(parcels[0])
    gc.collect()
    assert (first(), second()) == (None, None)


@pytest.mark.parametrize("gone", range(len(COHORTS_OF)))
def test_a_parcel_that_nobody_waits_for_any_more_is_not_in_the_sum_and_holds_up_nobody(gone):
    parcels = parcels_of(reply="mean")
    inbox, _ = inbox_for(parcels)
    for index in (3, 2, 1, 0):
        if index == gone:
            inbox.give_up(parcels[index], "no reply within 5 seconds")
        else:
            inbox.take(parcels[index], reply_to(parcels[index]))
    (mean,) = inbox.conclude(everybodys_ids(parcels))
    left = [group for index, cohorts in enumerate(COHORTS_OF) if index != gone for group in cohorts]
    assert mean.content[ARRAYS]["w"].numpy().tobytes() == summed_by_hand(left)["w"].tobytes()
    assert mean.metadata.reply_to_message_id == f"m{left[0][0]}", "the first that answered"
    assert absences(inbox) == [(p, "no reply within 5 seconds") for p in parcels[gone].participants]


def test_where_nobody_answers_there_is_no_mean():
    parcels = parcels_of(reply="mean")
    inbox, ledger = inbox_for(parcels)
    for parcel in parcels:
        inbox.give_up(parcel, "gone")
    assert inbox.conclude(everybodys_ids(parcels)) == []
    assert (inbox.report.answered, len(inbox.report.absent), ledger.by_phase()) == ([], 9, {})


def test_a_cohort_whose_arrays_cannot_be_summed_is_left_out_alone():
    parcels = parcels_of(reply="mean")
    inbox, ledger = inbox_for(parcels)
    for parcel in parcels:
        reply = reply_to(parcel)
        if parcel is parcels[0]:
            reply.content["arrays-1"]["w"] = Array(np.full(16, np.inf))
        inbox.take(parcel, reply)
    (mean,) = inbox.conclude(everybodys_ids(parcels))
    left = [group for group in GROUPS if group != (2,)]
    assert mean.content[ARRAYS]["w"].numpy().tobytes() == summed_by_hand(left)["w"].tobytes()
    assert absences(inbox) == [(2, "not finite: w")]
    assert ledger.by_phase()["rounds"].participant_uploads == 8


# ----------------------------------------------------------------------------- one reply each


@given(st.permutations(range(len(COHORTS_OF))))
@settings(max_examples=24, deadline=None)
def test_replies_come_in_participant_order_and_each_once(order):
    parcels = parcels_of()
    inbox, _ = inbox_for(parcels)
    for index in order:
        inbox.take(parcels[index], reply_to(parcels[index]))
    ids = everybodys_ids(parcels)
    assert answers_to(inbox.replies([ids[7], ids[2]])) == ["m2", "m7"], "those that were asked for"
    concluded = inbox.conclude(ids)
    assert answers_to(concluded) == ["m0", "m1", "m3", "m4", "m5", "m6", "m8"]
    assert inbox.conclude(ids) == inbox.replies(ids) == []
    assert inbox.report.answered == list(range(9))
    assert concluded[2].content[ARRAYS]["w"].numpy().tolist() == result([3])[ARRAYS]["w"].numpy().tolist()


@given(st.permutations(range(len(COHORTS_OF))))
@settings(max_examples=24, deadline=None)
def test_what_an_exchange_takes_itself_comes_at_once_and_is_kept_by_nobody(order):
    taken: list[int] = []

    def take(participant: int, content: RecordDict) -> str | None:
        assert content[ARRAYS]["w"].numpy().tolist() == result([participant])[ARRAYS]["w"].numpy().tolist()
        taken.append(participant)
        return "too good to be true" if participant == 4 else None

    parcels = parcels_of(replace(ROUND, take=take))
    inbox, ledger = inbox_for(parcels)
    for index in order:
        reply = reply_to(parcels[index], p7={"extra": 1.0})  # nobody compares metrics
        if parcels[index] is parcels[2]:
            reply.content["arrays-1"]["w"] = Array(np.full(16, np.inf))
        content = weakref.ref(reply.content)
        inbox.take(parcels[index], reply)
        del reply
        gc.collect()
        assert content() is None
    assert taken == [p for index in order for p in parcels[index].participants if p != 6]
    assert inbox.conclude(everybodys_ids(parcels)) == []
    assert inbox.report.answered == [0, 1, 2, 3, 5, 7, 8]
    assert absences(inbox) == [(4, "too good to be true"), (6, "not finite: w")]
    assert inbox.report.refused == 2
    assert ledger.by_phase()["rounds"].participant_uploads == 7


def test_whoever_failed_or_is_late_was_not_refused():
    parcels = parcels_of()
    inbox, _ = inbox_for(parcels)
    inbox.take(parcels[0], error_reply(sent(parcels[0]), "no memory"))
    inbox.give_up(parcels[1], "no reply within 5 seconds")
    for parcel in parcels[2:]:
        answer = reply_to(parcel)
        if parcel is parcels[2]:
            _without_metrics(answer.content)
        inbox.take(parcel, answer)
    inbox.conclude(everybodys_ids(parcels))
    assert [p for p, _ in absences(inbox)] == [0, 1, 2, 3, 4, 5, 6]
    assert inbox.report.refused == 2


def test_an_error_reply_costs_its_parcels_participants_only(caplog):
    parcels = parcels_of()
    inbox, ledger = inbox_for(parcels)
    for parcel in reversed(parcels):
        error = error_reply(sent(parcel), "no memory\nTraceback (most recent call last):\n  of many lines")
        inbox.take(parcel, error if parcel is parcels[2] else reply_to(parcel))
    assert len(inbox.conclude(everybodys_ids(parcels))) == 7
    assert absences(inbox) == [(5, "error reply: no memory"), (6, "error reply: no memory")]
    assert inbox.report.answered == [0, 1, 2, 3, 4, 7, 8]
    assert ledger.by_phase()["rounds"].participant_uploads == 7
    (logged,) = caplog.messages
    assert "rounds 1: without participant 5, 6" in logged
    assert "of many lines" in logged


def test_who_answers_that_it_failed_is_named_with_its_reason():
    parcels = parcels_of(cohorts=[[(0, 1, 2)]])
    inbox, ledger = inbox_for(parcels)
    content = RecordDict(
        {f"{key}-{row}": record for row, p in ((0, 0), (1, 2)) for key, record in result([p]).items()}
    )
    content[COHORTS] = Answers((0, 1, 2), (0, -1, 1), (2, 0, 2), ("", "diverged", "")).to_record()
    inbox.take(parcels[0], Message(content, reply_to=sent(parcels[0])))
    assert answers_to(inbox.conclude(everybodys_ids(parcels))) == ["m0", "m2"]
    assert (inbox.report.answered, absences(inbox)) == ([0, 2], [(1, "diverged")])
    assert ledger.by_phase()["rounds"].local_steps == 4


def _without_answers(content: RecordDict) -> None:
    del content[COHORTS]


def _of_others(content: RecordDict) -> None:
    content[COHORTS] = Answers((5, 7), (0, 1), (2, 2), ("", "")).to_record()


def _without_metrics(content: RecordDict) -> None:
    del content["metrics-1"]


def _too_many(content: RecordDict) -> None:
    content.update({f"own-{index}": ConfigRecord() for index in range(200)})


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (_without_answers, "expected a reply with a cohorts record for 2 participants"),
        (_of_others, "expected answers of 2 participants"),
        (_without_metrics, "expected a metrics record in every result, got none in result 1"),
        (_too_many, "expected at most 104 records, got 205"),
    ],
)
@pytest.mark.parametrize("reply", ["each", "mean"])
def test_a_reply_that_cannot_be_read_costs_its_parcels_participants_only(tamper, reason, reply):
    parcels = parcels_of(reply=reply)
    inbox, ledger = inbox_for(parcels)
    for parcel in parcels:
        answer = reply_to(parcel)
        if parcel is parcels[2]:
            tamper(answer.content)
        inbox.take(parcel, answer)
    assert inbox.conclude(everybodys_ids(parcels)) != []
    assert [participant for participant, _ in absences(inbox)] == [5, 6]
    assert all(told.startswith(f"a reply that cannot be read: {reason}") for _, told in absences(inbox))
    assert ledger.by_phase()["rounds"].participant_uploads == 7


def test_a_reply_of_one_participant_may_be_an_ordinary_one():
    (parcel,) = parcels_of(cohorts=[[(4,)]])
    content = result([4])
    answers, (one,) = read_reply(parcel.cohorts, content)
    assert answers == Answers((4,), (0,), (2,), ("",))
    assert (one.participants, one.local_steps, dict(one.content)) == ([4], [2], dict(content))
    with pytest.raises(MessageError, match="expected a metrics record"):
        read_reply(parcel.cohorts, RecordDict())


# ----------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({NUM_EXAMPLES: 51}, "expected at most 50 as num-examples, got 51"),
        ({LOCAL_STEPS: 3}, "expected the same local-steps in metrics and answers, got 3 and 2"),
        ({TRAIN_LOSS: float("nan")}, "not finite: train-loss"),
        ({"trust": 0.0}, "expected trust, by which the strategy weighs, above 0 and at most 50"),
        ({"trust": 51.0}, "expected trust, by which the strategy weighs, above 0 and at most 50"),
        ({"trust": None}, "expected trust, by which the strategy weighs, above 0 and at most 50"),
    ],
)
def test_numbers_that_cannot_be_cost_only_who_says_them(told, reason):
    exchange = replace(ROUND, weight_key="trust")
    parcels = parcels_of(exchange)
    inbox, ledger = inbox_for(parcels, limits=Limits(examples=50))
    honest = {f"p{p}": {"trust": 50.0} for p in range(9)}
    for parcel in parcels:
        inbox.take(parcel, reply_to(parcel, **{**honest, "p4": {"trust": 50.0, **told}}))
    assert len(inbox.conclude(everybodys_ids(parcels))) == 8
    ((participant, found),) = absences(inbox)
    assert participant == 4
    assert found.startswith(reason)
    assert ledger.by_phase()["rounds"].participant_uploads == 8


def test_what_hello_told_bounds_examples_and_steps():
    held = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18])
    exchange = replace(ROUND, steps_of=lambda examples: 2 if examples < 18 else 1)
    parcels = parcels_of(exchange)
    inbox, _ = inbox_for(parcels, held=held)
    for parcel in parcels:
        inbox.take(parcel, reply_to(parcel, p3={NUM_EXAMPLES: 14}))
    inbox.conclude(everybodys_ids(parcels))
    assert absences(inbox) == [
        (3, "expected at most 13 as num-examples, got 14"),
        (8, "expected at most 1 local-steps, which the settings allow, got 2"),
    ]


def test_a_cohorts_mean_may_say_what_its_members_together_may():
    held = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18])
    parcels = parcels_of(replace(ROUND, steps_of=lambda examples: 2), "mean")
    inbox, _ = inbox_for(parcels, held=held)
    for parcel in parcels:
        inbox.take(parcel, reply_to(parcel, p0={NUM_EXAMPLES: 21}, p3={NUM_EXAMPLES: 28}))
    inbox.conclude(everybodys_ids(parcels))
    assert absences(inbox) == [(p, "expected at most 27 as num-examples, got 28") for p in (3, 4)]


def test_the_ledger_counts_the_bytes_and_steps_of_every_reply_as_a_device_sends_it():
    parcels = parcels_of()
    inbox, ledger = inbox_for(parcels)
    for parcel in parcels:
        inbox.take(parcel, reply_to(parcel))
    each = bytes_of(result([0]))
    assert ledger.by_phase() == {
        "rounds": Costs(participant_uploads=9, bytes_up=9 * each, local_steps=18),
    }


# ----------------------------------------------------------------------------- other metrics than most


def concluded(exchange: Exchange, make: Any = result, **changes: Any) -> tuple[list[str], Inbox, Ledger]:
    cohorts = [[(p,)] for p in range(len(changes))]
    parcels = parcels_of(exchange, cohorts=cohorts)
    inbox, ledger = inbox_for(parcels)
    for parcel in reversed(parcels):
        inbox.take(parcel, reply_to(parcel, make, **changes))
    return answers_to(inbox.conclude(everybodys_ids(parcels))), inbox, ledger


OWN: dict[str, Any] = {"own": 1.0}


def test_of_other_metrics_the_most_frequent_stay_also_where_ours_are_among_them():
    replies, inbox, ledger = concluded(ROUND, p0={}, p1=OWN, p2=OWN)
    assert replies == ["m1", "m2"]
    assert inbox.report.answered == [1, 2]
    ((participant, reason),) = absences(inbox)
    assert (participant, reason[:32]) == (0, "other metrics than most: {'local")
    assert ledger.by_phase()["rounds"].participant_uploads == 3, "it was as good a reply as the others"


@pytest.mark.parametrize(
    ("exchange", "make", "changes", "stay"),
    [
        (ROUND, result, {"p0": OWN, "p1": {}}, "m1"),
        (replace(ROUND, phase="teachers"), result, {"p0": {TRAIN_LOSS: None}, "p1": {}}, "m1"),
        (EVALUATION, evaluated, {"p0": {EVAL_LOSS: None}, "p1": {}}, "m1"),
        (
            replace(ROUND, label_counts=LabelCountLimits(2)),
            result,
            {"p0": {LABEL_COUNTS: [1.0, 2.0], TRAIN_LOSS: None}, "p1": {LABEL_COUNTS: [1.0, 2.0]}},
            "m1",
        ),
    ],
)
def test_of_equally_frequent_metrics_ours_stay(exchange, make, changes, stay):
    assert concluded(exchange, make, **changes)[0] == [stay]


def test_of_equally_frequent_metrics_that_are_not_ours_the_fewest_stay():
    replies, inbox, _ = concluded(ROUND, p0={**OWN, "zeal": 1.0}, p1=OWN)
    assert (replies, [participant for participant, _ in absences(inbox)]) == (["m1"], [0])


def test_a_list_of_another_length_is_another_metric():
    replies, inbox, _ = concluded(ROUND, p0={"own": [1.0, 2.0]}, p1={"own": [1.0]}, p2={"own": [3.0]})
    assert replies == ["m1", "m2"]
    assert "('own', 2)" not in absences(inbox)[0][1]
    assert "'own': 2" in absences(inbox)[0][1]


def test_replies_that_are_asked_for_one_by_one_are_not_compared():
    """A strategy that pulls may get them in any company: nobody can say which are most."""
    parcels = parcels_of(cohorts=[[(0,)], [(1,)]])
    inbox, _ = inbox_for(parcels)
    for parcel in parcels:
        inbox.take(parcel, reply_to(parcel, p0={"own": 1.0}))
    assert len(inbox.replies(["m0", "m1"])) == 2
    assert absences(inbox) == []


# ----------------------------------------------------------------------------- late


def late_parcel(inbox: Inbox, parcel: Parcel) -> Parcel:
    inbox.give_up(parcel, "no reply within 5 seconds")
    parcel.late = True
    inbox.conclude(everybodys_ids([parcel]))
    assert inbox.report.answered == []
    return parcel


@pytest.mark.parametrize("reply", ["each", "mean"])
def test_a_late_reply_is_counted_and_named_once_and_never_used(reply):
    (parcel,) = parcels_of(reply=reply, cohorts=[[(0, 1)]])
    inbox, ledger = inbox_for([parcel])
    late_parcel(inbox, parcel)
    assert ledger.by_phase() == {}
    inbox.begin(replace(ROUND, round=2))
    inbox.take(parcel, reply_to(parcel))
    assert ledger.by_phase()["rounds"].participant_uploads == 2
    assert ledger.by_phase()["rounds"].local_steps == 4
    assert inbox.conclude(everybodys_ids([parcel])) == []
    assert absences(inbox) == [(p, "late: reply to round 1, not used") for p in (0, 1)]
    assert inbox.report.answered == []
    inbox.begin(replace(ROUND, round=3))
    assert inbox.conclude(everybodys_ids([parcel])) == []
    assert absences(inbox) == []


def test_a_late_reply_that_comes_during_an_evaluation_is_named_in_the_round_after():
    (parcel,) = parcels_of(cohorts=[[(0,)]])
    inbox, _ = inbox_for([parcel])
    late_parcel(inbox, parcel)
    inbox.begin(EVALUATION)
    inbox.take(parcel, reply_to(parcel))
    inbox.conclude([])
    assert absences(inbox) == []
    inbox.begin(replace(ROUND, round=2))
    inbox.conclude([])
    assert absences(inbox) == [(0, "late: reply to round 1, not used")]


def test_what_is_wrong_with_a_late_reply_is_told_and_not_counted():
    parcels = parcels_of(cohorts=[[(0,)], [(1, 2)], [(3,)]])
    inbox, ledger = inbox_for(parcels)
    for parcel in parcels:
        late_parcel(inbox, parcel)
        inbox.begin(ROUND)
    inbox.take(parcels[0], reply_to(parcels[0], p0={NUM_EXAMPLES: 0}))
    inbox.take(parcels[1], Message(RecordDict(), reply_to=sent(parcels[1])))
    inbox.take(parcels[2], error_reply(sent(parcels[2]), "gone"))
    inbox.conclude([])
    (first, one, two) = absences(inbox)
    assert first == (0, "late: reply to round 1: expected num-examples above 0, a whole number, got 0")
    assert [one[0], two[0]] == [1, 2], "an error is no news: it was named in its own round"
    assert one[1].startswith("late: reply to round 1, which cannot be read: expected a reply with a cohorts")
    assert ledger.by_phase() == {}


# ----------------------------------------------------------------------------- what is told


def test_the_report_is_sorted_whatever_came_first():
    parcels = parcels_of()
    inbox, _ = inbox_for(parcels)
    inbox.leave_out([12, 9], "busy")
    inbox.take(parcels[3], reply_to(parcels[3]))
    inbox.give_up(parcels[2], "gone")
    inbox.take(parcels[0], reply_to(parcels[0]))
    inbox.give_up(parcels[1], "gone")
    inbox.conclude(everybodys_ids(parcels))
    assert inbox.report.answered == [0, 1, 2, 7, 8]
    assert [participant for participant, _ in absences(inbox)] == [3, 4, 5, 6, 9, 12]


@pytest.mark.parametrize("late", [False, True])
def test_warnings_are_passed_on_once_and_only_some_of_them(late, caplog):
    parcels = parcels_of(cohorts=[[(0,)], [(1,)]])
    inbox, _ = inbox_for(parcels)
    for parcel in parcels:
        if late:
            late_parcel(inbox, parcel)
            inbox.begin(ROUND)
        caplog.clear()
        reply = reply_to(parcel)
        reply.content[WARNINGS] = ConfigRecord({"texts": [f"warning {i}" for i in range(30)]})
        with caplog.at_level(logging.WARNING, logger="kdfed.strategies"):
            inbox.take(parcel, reply)
        told = [text for text in caplog.messages if text.startswith("a participant warns: ")]
        first = parcel is parcels[0]
        assert told == [f"a participant warns: warning {i}" for i in range(20 if first else 0)]


def test_warnings_that_are_no_list_are_nothing():
    (parcel,) = parcels_of(cohorts=[[(0,)]])
    inbox, _ = inbox_for([parcel])
    reply = reply_to(parcel)
    reply.content[WARNINGS] = ConfigRecord({"texts": "one"})
    inbox.take(parcel, reply)
    assert answers_to(inbox.conclude(["m0"])) == ["m0"]


def test_a_new_exchange_has_a_report_of_its_own():
    parcels = parcels_of()
    inbox, _ = inbox_for(parcels)
    inbox.give_up(parcels[0], "gone")
    before = inbox.report
    inbox.begin(replace(ROUND, round=2))
    assert (len(before.absent), inbox.report.absent) == (3, [])
