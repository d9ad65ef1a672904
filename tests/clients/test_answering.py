"""One message, many participants: the work is a function of a few lines, without a ClientApp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from clients import answering
from clients.answering import CohortWork, Contribution, answer
from kdfed.arrays import Spec, spec_of
from kdfed.averaging import WeightedMean
from kdfed.limits import Limits
from kdfed.local import PlainLocal
from kdfed.messages import (
    ARRAYS,
    COHORTS,
    CONFIG,
    METRICS,
    Answers,
    Cohorts,
    Evaluate,
    ReplyKind,
    Train,
    group_of,
)
from kdfed.metrics import EVAL_LOSS, LOCAL_STEPS, NUM_EXAMPLES, TRAIN_LOSS, Metrics
from kdfed.private.flwr import identify, name_message
from kdfed.settings import ModelSettings
from strategies.inbox import read_reply


def test_each_reason_is_reasons_once_and_no_reason_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def one_line(text: str) -> str:
        read.append(text)
        return text.partition("\n")[0]

    monkeypatch.setattr(answering, "one_line", one_line)
    reason = "no memory\nTraceback"
    answers = [(0, 0, 3, ""), (1, -1, 0, reason), (2, 1, 3, ""), (3, -1, 0, reason)]
    assert answering._reasons_once(answers) == [*answers[:3], (3, -1, 0, "no memory")]
    assert read == [reason, reason]


# ----------------------------------------------------------------------------- by hand

SENT = {"w": torch.zeros(3), "n": torch.tensor(0)}
SPEC: Spec = spec_of(SENT)
MEMBERS = ((0, 1, 2), (3, 4))


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


def train_message(server_round: int = 1) -> Train:
    return Train(
        seed=3, server_round=server_round, model=ModelSettings(name="mlp"), local=PlainLocal(), arrays=SENT
    )


def message_of(content: RecordDict, cohorts: Cohorts | None = None) -> Message:
    if cohorts is not None:
        content[COHORTS] = cohorts.to_record()
    message = Message(content, 1, Train.type)
    name_message(message, "m")
    return message


def asking(
    reply: ReplyKind = "each",
    members: Sequence[tuple[int, ...]] = MEMBERS,
    limits: Limits | None = None,
) -> Message:
    cohorts = Cohorts(tuple(members), (0,) * sum(map(len, members)), reply, limits)
    return message_of(train_message().to_record(), cohorts)


def weights_of(member: int) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([0.1, 0.2, 0.3]) * (member + 1), "n": torch.tensor(member)}


def examples_of(member: int) -> int:
    return 10 + member


def metrics_of(member: int, **more: Any) -> Metrics:
    return {NUM_EXAMPLES: examples_of(member), TRAIN_LOSS: member / 2, LOCAL_STEPS: member, **more}


Change = Callable[[int, dict[str, torch.Tensor], Metrics], None]


class Work:
    """Trains nobody: gives everybody weights of its own, some participants at a time."""

    def __init__(
        self, at_once: int = 2, change: Change | None = None, fails: Sequence[int] = (), summed: bool = False
    ) -> None:
        self.asked: list[Any] = []
        self.called: list[tuple[list[int], bool]] = []
        self._at_once, self._change, self._fails, self._summed = at_once, change, fails, summed

    def __call__(self, asked: Train) -> CohortWork:
        self.asked.append(asked)
        return self._work

    def _work(self, members: Sequence[int], sums: bool) -> Iterator[Contribution]:
        self.called.append((list(members), sums))
        for start in reversed(range(0, len(members), self._at_once)):
            part = list(members)[start : start + self._at_once]
            if set(part) & set(self._fails):
                raise RuntimeError(f"boom of {sorted(set(part) & set(self._fails))}")
            arrays, metrics = [weights_of(m) for m in part], [metrics_of(m) for m in part]
            for member, own, told in zip(part, arrays, metrics, strict=True):
                if self._change is not None:
                    self._change(member, own, told)
            if self._summed and sums:
                pairs = list(zip(arrays, metrics, strict=True))
                totals = {k: sum(own[k].double() * told[NUM_EXAMPLES] for own, told in pairs) for k in SPEC}
                yield Contribution(part, {}, metrics, totals)
            else:
                yield Contribution(part, {k: torch.stack([own[k] for own in arrays]) for k in SPEC}, metrics)


def answered(message: Message, work: Work) -> tuple[Answers, dict[tuple[int, ...], RecordDict]]:
    """What the server reads: who answered, and each result by whose it is."""
    reply = answer(message, Train, work, lambda asked: spec_of(asked.arrays))
    assert reply.metadata.reply_to_message_id == "m"
    answers, results = read_reply(Cohorts.from_record(message.content[COHORTS]), reply.content)
    return answers, {tuple(result.participants): result.content for result in results}


def mean_of(*members: int) -> dict[str, np.ndarray]:
    mean = WeightedMean(SPEC)
    for member in members:
        for key, values in weights_of(member).items():
            mean.part(key)[:] = values.double().numpy().reshape(-1)
        mean.add(examples_of(member))
    return mean.arrays()


def assert_mean_of(result: RecordDict, *members: int) -> None:
    expected = mean_of(*members)
    for key, (shape, dtype) in SPEC.items():
        found = result[ARRAYS][key].numpy()
        assert (found.shape, str(found.dtype)) == (shape, dtype)
        np.testing.assert_allclose(found, expected[key], rtol=1e-6)
    assert result[METRICS][NUM_EXAMPLES] == sum(map(examples_of, members))
    assert result[METRICS][LOCAL_STEPS] == sum(members)
    losses = sum(examples_of(member) * member / 2 for member in members)
    assert result[METRICS][TRAIN_LOSS] == pytest.approx(losses / sum(map(examples_of, members)))


# ----------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_everybody_gets_a_result_of_its_own_whatever_is_done_together(at_once: int) -> None:
    work = Work(at_once)
    answers, results = answered(asking(), work)
    assert answers == Answers((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), ("",) * 5)
    for member in range(5):
        own = results[member,]
        assert {k: v.tolist() for k, v in own[ARRAYS].to_torch_state_dict().items()} == {
            k: v.tolist() for k, v in weights_of(member).items()
        }
        assert dict(own[METRICS]) == metrics_of(member)
    assert work.called == [([0, 1, 2], False), ([3, 4], False)], "a cohort at a time"
    assert len(work.asked) == 1, "the message was read once"
    assert work.asked[0].server_round == 1


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_each_cohort_gets_one_mean_whoever_sums(at_once: int, summed: bool) -> None:
    work = Work(at_once, summed=summed)
    answers, results = answered(asking("mean"), work)
    assert answers == Answers((0, 1, 2, 3, 4), (0, 0, 0, 1, 1), (0, 1, 2, 3, 4), ("",) * 5)
    assert list(results) == [(0, 1, 2), (3, 4)]
    for members, result in results.items():
        assert_mean_of(result, *members)
    assert work.called == [([0, 1, 2], True), ([3, 4], True)]


def test_a_message_without_cohorts_gets_an_ordinary_reply() -> None:
    work = Work()
    reply = answer(message_of(train_message().to_record()), Train, work, lambda asked: SPEC)
    assert set(reply.content) == {ARRAYS, METRICS}
    assert dict(reply.content[METRICS]) == metrics_of(0)
    assert work.called == [([0], False)]


def test_a_device_draws_as_the_participant_that_its_message_names() -> None:
    work, message = Work(), message_of(train_message().to_record())
    message.metadata.group_id = group_of(7)
    reply = answer(message, Train, work, lambda asked: SPEC)
    assert dict(reply.content[METRICS]) == metrics_of(7)
    assert work.called == [([7], False)]


def test_a_cohort_of_one_sends_its_work_as_a_device_does() -> None:
    """(n w) / n is not w where weights are float64, nor is one step's weight sum n w; so it is not a mean."""
    work, cohorts = Work(), Cohorts(((7,),), (0,), "mean", Limits(100, 1e9))
    reply = answer(message_of(train_message().to_record(), cohorts), Train, work, lambda asked: SPEC)
    alone = message_of(train_message().to_record())
    alone.metadata.group_id = group_of(7)
    device = answer(alone, Train, Work(), lambda asked: SPEC)
    assert work.called == [([7], False)]
    for key in (ARRAYS, METRICS):
        assert reply.content[key] == device.content[key]


def test_work_without_arrays_has_metrics_alone() -> None:
    def begin(asked: Evaluate) -> CohortWork:
        return lambda members, sums: [
            Contribution(members, {}, [{NUM_EXAMPLES: 5 + m, EVAL_LOSS: 0.5} for m in members])
        ]

    cohorts = Cohorts(((7, 9),), (0, 0), "each")
    asked = Evaluate(seed=3, server_round=1, model=ModelSettings(name="mlp"), arrays=SENT)
    reply = answer(message_of(asked.to_record(), cohorts), Evaluate, begin, lambda asked: {})
    assert set(reply.content) == {"metrics-0", "metrics-1", COHORTS}
    assert [reply.content[f"metrics-{index}"][NUM_EXAMPLES] for index in range(2)] == [12, 14]


# ----------------------------------------------------------------------------- who fails


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("reply", ["each", "mean"])
def test_one_that_fails_costs_only_itself(reply: ReplyKind, summed: bool, caplog: Any) -> None:
    work = Work(2, fails=[1], summed=summed)
    answers, results = answered(asking(reply), work)
    assert [index < 0 for index in answers.results] == [False, True, False, False, False]
    assert answers.local_steps == (0, 0, 2, 3, 4)
    assert answers.reasons[1].startswith("RuntimeError: boom of [1]")
    assert work.called == [(m, reply == "mean") for m in ([0, 1, 2], [0], [1], [2], [3, 4])]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("a cohort of 3 failed together (RuntimeError: boom of [1]")
    if reply == "each":
        assert list(results) == [(0,), (2,), (3,), (4,)]
    else:
        assert list(results) == [(0, 2), (3, 4)]
        assert_mean_of(results[0, 2], 0, 2)


@pytest.mark.parametrize("reply", ["each", "mean"])
def test_where_a_whole_cohort_fails_the_other_is_the_only_result(reply: ReplyKind) -> None:
    answers, results = answered(asking(reply), Work(fails=[0, 1, 2]))
    assert [index < 0 for index in answers.results] == [True] * 3 + [False] * 2
    assert list(results) == ([(3,), (4,)] if reply == "each" else [(3, 4)])


@pytest.mark.parametrize("reply", ["each", "mean"])
def test_where_everybody_fails_there_are_reasons_and_no_results(reply: ReplyKind) -> None:
    answers, results = answered(asking(reply), Work(fails=range(5)))
    assert (set(answers.results), results) == ({-1}, {})
    assert all("boom" in reason for reason in answers.reasons)


def test_the_end_of_the_program_ends_it_and_an_exit_of_a_model_does_not() -> None:
    def raising(error: BaseException) -> CohortWork:
        def work(members: Sequence[int], sums: bool) -> Iterator[Contribution]:
            raise error
            yield

        return work

    reply = answer(asking(), Train, lambda asked: raising(SystemExit(3)), lambda asked: SPEC)
    assert set(reply.content[COHORTS]["results"]) == {-1}
    with pytest.raises(KeyboardInterrupt):
        answer(asking(), Train, lambda asked: raising(KeyboardInterrupt()), lambda asked: SPEC)


def only(member: int, change: Change) -> Change:
    def changed(other: int, arrays: dict[str, torch.Tensor], metrics: Metrics) -> None:
        if other == member:
            change(other, arrays, metrics)

    return changed


def _not_finite(member: int, arrays: dict[str, torch.Tensor], metrics: Metrics) -> None:
    arrays["w"][1] = torch.nan


def _no_examples(member: int, arrays: dict[str, torch.Tensor], metrics: Metrics) -> None:
    metrics[NUM_EXAMPLES] = 0


def _far_away(member: int, arrays: dict[str, torch.Tensor], metrics: Metrics) -> None:
    arrays["w"][1] = 1e6


def _too_many_examples(member: int, arrays: dict[str, torch.Tensor], metrics: Metrics) -> None:
    metrics[NUM_EXAMPLES] = 1001


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_not_finite, "not finite: w"),
        (_no_examples, "expected num-examples above 0"),
        (_far_away, "weights too far from where they started"),
        (_too_many_examples, "expected at most 1000 as num-examples, got 1001"),
    ],
)
@pytest.mark.parametrize("member", [0, 1, 4])
@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_work_that_cannot_be_summed_is_left_out_and_named(
    change: Change, reason: str, member: int, at_once: int
) -> None:
    message = asking("mean", limits=Limits(1000, 100.0))
    answers, results = answered(message, Work(at_once, only(member, change)))
    assert [p for p, index in zip(answers.participants, answers.results, strict=True) if index < 0] == [
        member
    ]
    assert answers.reasons[member].startswith(reason)
    for members, result in results.items():
        assert_mean_of(result, *members)
    assert sorted(p for members in results for p in members) == [p for p in range(5) if p != member]


@pytest.mark.parametrize("change", [_no_examples, _far_away, _too_many_examples])
def test_sums_that_nobody_can_have_are_done_again_one_by_one(change: Change) -> None:
    work = Work(9, only(1, change), summed=True)
    answers, results = answered(asking("mean", limits=Limits(1000, 100.0)), work)
    assert [index < 0 for index in answers.results] == [False, True, False, False, False]
    assert list(results) == [(0, 2), (3, 4)]
    assert_mean_of(results[0, 2], 0, 2)


@pytest.mark.parametrize("at_once", [1, 9])
def test_what_is_not_finite_is_found_also_where_nothing_is_bounded(at_once: int) -> None:
    answers, results = answered(asking("mean"), Work(at_once, only(1, _not_finite)))
    assert answers.reasons == ("", "not finite: w", "", "", "")
    assert_mean_of(results[0, 2], 0, 2)


def test_where_the_server_looks_at_each_itself_nodes_have_no_bound() -> None:
    answers, _ = answered(asking("each", limits=None), Work(change=only(1, _far_away)))
    assert set(answers.reasons) == {""}


def test_only_the_shapes_that_were_expected_are_summed() -> None:
    other: Spec = {"w": ((4,), "float32"), "n": ((), "int64")}
    reply = answer(asking("mean"), Train, Work(), lambda asked: other)
    assert set(reply.content) == {COHORTS}
    assert set(reply.content[COHORTS]["reasons"]) == {"wrong shape of w: expected (4,), got (3,)"}


# ----------------------------------------------------------------------------- several contents


def of_variants(reply: ReplyKind, *contents: RecordDict) -> Message:
    """Participants 0, 2, 4 get the first content, 1 and 3 the second; 0 to 2 are a cohort."""
    content = RecordDict({f"{key}-{i}": r for i, own in enumerate(contents) for key, r in own.items()})
    return message_of(content, Cohorts(MEMBERS, (0, 1, 0, 1, 0), reply))


@pytest.mark.parametrize("reply", ["each", "mean"])
def test_each_content_is_read_once_and_its_participants_work_together(reply: ReplyKind) -> None:
    work = Work()
    message = of_variants(reply, train_message(1).to_record(), train_message(2).to_record())
    answers, results = answered(message, work)
    assert [asked.server_round for asked in work.asked] == [1, 2]
    assert [members for members, _ in work.called] == [[0, 2], [1], [3], [4]]
    assert set(answers.reasons) == {""}
    if reply == "mean":
        assert_mean_of(results[0, 1, 2], 0, 1, 2)
        assert_mean_of(results[3, 4], 3, 4)
    else:
        assert list(results) == [(p,) for p in range(5)]


@pytest.mark.parametrize("reply", ["each", "mean"])
def test_a_content_that_cannot_be_read_costs_only_its_own(reply: ReplyKind) -> None:
    bad = train_message(2).to_record()
    bad[CONFIG] = ConfigRecord({"seed": 3})
    work = Work()
    answers, results = answered(of_variants(reply, train_message(1).to_record(), bad), work)
    assert [index < 0 for index in answers.results] == [False, True, False, True, False]
    reasons = {reason for reason in answers.reasons if reason}
    assert len(reasons) == 1
    assert reasons.pop().startswith("MessageError: expected 'model' in a message")
    assert sorted(p for members in results for p in members) == [0, 2, 4]
    assert [members for members, _ in work.called] == [[0, 2], [4]]


def test_a_content_that_nobody_can_begin_costs_only_its_own() -> None:
    work = Work()

    def begin(asked: Train) -> CohortWork:
        if asked.server_round == 2:
            raise RuntimeError("no such model")
        return work(asked)

    message = of_variants("each", train_message(1).to_record(), train_message(2).to_record())
    reply = answer(message, Train, begin, lambda asked: SPEC)
    assert [index < 0 for index in reply.content[COHORTS]["results"]] == [False, True, False, True, False]


def test_records_of_one_result_have_plain_keys() -> None:
    reply = answer(asking("each", [(6,)]), Train, Work(), lambda asked: SPEC)
    assert set(reply.content) == {ARRAYS, METRICS, COHORTS}
    assert isinstance(reply.content[ARRAYS], ArrayRecord)
    assert isinstance(reply.content[METRICS], MetricRecord)
