"""Every message reads back equal; whatever is lacking or does not fit together is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from kdfed.backbones import BackboneSettings, split
from kdfed.errors import MessageError
from kdfed.limits import Limits
from kdfed.local import MutualLocal, PlainLocal
from kdfed.messages import (
    BACKBONE,
    CONFIG,
    SIMULATION,
    Answers,
    Cohorts,
    Evaluate,
    Evaluation,
    Hello,
    HelloReply,
    QueryLogits,
    Simulation,
    Train,
    TrainTeacher,
    Update,
    count_bytes,
    group_of,
    item,
    numbered,
    participant_of,
)
from kdfed.settings import LabelCountSettings, ModelSettings, OptimiserSettings, TeacherSettings
from tests.small_backbones import TINY

MODEL = ModelSettings(name="mlp", options={"hidden": (4, 3)})
STATE = {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}
IMAGES = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)

MESSAGES: list[Any] = [
    TrainTeacher(seed=1, model=MODEL, settings=TeacherSettings(epochs=3), arrays=STATE),
    TrainTeacher(
        seed=1,
        model=MODEL,
        settings=TeacherSettings(upload="logits", init="own", label_counts=LabelCountSettings(send=True)),
        inputs=IMAGES,
    ),
    Train(seed=1, server_round=2, model=MODEL, local=PlainLocal(lr=0.3), arrays=STATE),
    Train(seed=1, server_round=2, model=MODEL, local=MutualLocal(model=MODEL), arrays=STATE),
    QueryLogits(
        seed=1,
        server_round=4,
        model=MODEL,
        local=PlainLocal(),
        strategy="fedmd",
        digest=OptimiserSettings(epochs=2),
        images=None,
        count=2,
        public_sha256="ab" * 32,
        inputs=IMAGES,
        arrays=STATE,
    ),
    QueryLogits(
        seed=1,
        server_round=5,
        model=MODEL,
        local=PlainLocal(),
        strategy="ds_fl",
        digest=OptimiserSettings(epochs=2),
        images=2,
        count=2,
        public_sha256="ab" * 32,
        consensus=(4, torch.ones(2, 3, dtype=torch.float16)),
    ),
    Evaluate(seed=1, server_round=2, model=MODEL, arrays=STATE),
    Update(num_examples=7, train_loss=0.5, local_steps=3, label_counts=[1.0, 2.5], arrays=STATE),
    Update(num_examples=7),
    Evaluation(num_examples=7, loss=0.5, accuracy=-2.0),
]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_reads_back_equal(message):
    again = type(message).from_record(message.to_record())
    assert all(_same(value, getattr(again, key)) for key, value in vars(message).items())


def test_what_a_strategy_is_given_as_configuration_travels_beside_the_settings():
    sent = TrainTeacher(seed=1, model=MODEL, settings=TeacherSettings(), more={"lr": 0.5, "seed": 9})
    config = sent.to_record()[CONFIG]
    assert (config["lr"], config["seed"]) == (0.5, 1)


@pytest.mark.parametrize("message", MESSAGES[:7], ids=lambda message: type(message).__name__)
def test_a_message_without_a_setting_is_refused_and_says_which(message):
    for key in message.to_record()[CONFIG]:
        content = message.to_record()
        del content[CONFIG][key]
        with pytest.raises(MessageError, match=f"expected '{key}' in a message, of type (int|str), got None"):
            type(message).from_record(content)


@pytest.mark.parametrize("text", ["{", "[]", '{"epochs": "many"}', '{"unheard-of": 1}'])
@pytest.mark.parametrize(("message", "key"), [(MESSAGES[0], "teachers"), (MESSAGES[2], "local")])
def test_settings_that_cannot_be_read_are_refused(message, key, text):
    content = message.to_record()
    content[CONFIG][key] = text
    with pytest.raises(MessageError, match=f"expected settings as '{key}' in a message"):
        type(message).from_record(content)


def test_a_hello_and_its_reply_read_back_equal():
    assert Hello({"kdfed": "1"}).to_record()[CONFIG]["versions"] == '{"kdfed": "1"}'
    reply = HelloReply({"kdfed": "1"}, np.array([3, 4]), "abc")
    again = HelloReply.from_record(reply.to_record())
    assert (again.versions, again.examples.tolist(), again.partition_sha256) == (
        {"kdfed": "1"},
        [3, 4],
        "abc",
    )


@pytest.mark.parametrize(
    "simulation",
    [
        Simulation("{}", "{}", 1, 2, "cpu", "float32"),
        Simulation("{}", "{}", 1, 2, "cuda:1", "bfloat16", ("a:b",), Path("/there"), Path("/store")),
    ],
)
def test_a_simulation_reads_back_equal(simulation):
    assert Simulation.from_record(RecordDict({SIMULATION: simulation.to_record()})) == simulation


def test_a_message_without_a_simulation_has_none():
    assert Simulation.from_record(RecordDict()) is None
    with pytest.raises(MessageError, match="expected 'partition' in a message"):
        Simulation.from_record(RecordDict({SIMULATION: ConfigRecord({"data": "{}"})}))


def test_one_of_several_contents_is_an_ordinary_one():
    content = RecordDict(
        {
            "arrays-1": ArrayRecord({"w": torch.ones(1)}),
            "config-0": ConfigRecord({"seed": 0}),
            "config-1": ConfigRecord({"seed": 1}),
            "cohorts": ConfigRecord({"reply": "each"}),
        }
    )
    assert list(item(content, 0, 2)) == [CONFIG]
    assert set(item(content, 1, 2)) == {"arrays", CONFIG}
    assert item(content, 1, 2)[CONFIG]["seed"] == 1
    assert item(RecordDict({CONFIG: ConfigRecord({"seed": 3})}), 0, 1)[CONFIG]["seed"] == 3


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=5))
def test_cohorts_read_back_equal(cohorts):
    asked = Cohorts(tuple(map(tuple, cohorts)), tuple(0 for c in cohorts for _ in c), "mean")
    assert Cohorts.from_record(asked.to_record()) == asked


def test_answers_read_back_equal():
    answers = Answers((4, 7), (0, -1), (2, 0), ("", "not finite: w"))
    assert Answers.from_record(answers.to_record()) == answers


@pytest.mark.parametrize(
    "lists",
    [
        {},
        {"participants": [1], "sizes": [2], "variants": [0], "reply": "mean"},
        {"participants": [1], "sizes": [1], "variants": [0], "reply": "median"},
        {"participants": ["x"], "sizes": [1], "variants": [0], "reply": "mean"},
    ],
)
def test_cohorts_that_do_not_fit_together_is_refused(lists):
    with pytest.raises(MessageError, match="expected"):
        Cohorts.from_record(lists)


def test_the_limits_of_cohorts_read_back_equal():
    for buffers in (frozenset[str](), frozenset({"mean", "variance"})):
        asked = Cohorts(((1, 2), (3,)), (0, 0, 0), "mean", Limits(12, 3.5, buffers))
        assert Cohorts.from_record(asked.to_record()) == asked


ASKED = ((4, 7), (9,))


@pytest.mark.parametrize(
    ("reply", "results", "members"),
    [
        ("mean", (0, 0, 1), {0: [4, 7], 1: [9]}),
        ("mean", (-1, -1, 0), {0: [9]}),
        ("each", (0, -1, 1), {0: [4], 1: [9]}),
        ("each", (-1, -1, -1), {}),
    ],
)
def test_answers_say_whose_work_is_in_a_result(reply, results, members):
    answers = Answers((4, 7, 9), results, (1, 1, 1), ("", "", ""))
    assert answers.members(Cohorts(ASKED, (0, 0, 0), reply)) == members


@pytest.mark.parametrize(
    ("reply", "participants", "results"),
    [
        ("mean", (4, 7, 8), (0, 0, 1)),
        ("mean", (4, 4, 9), (0, 0, 1)),
        ("mean", (4, 7, 9), (0, 1, 2)),
        ("mean", (4, 7, 9), (0, 0, 0)),
        ("mean", (4, 7, 9), (0, 0, 2**31)),
        ("each", (4, 7, 9), (0, 0, 1)),
        ("each", (4, 7, 9), (0, 1, 3)),
    ],
)
def test_answers_that_do_not_fit_what_was_asked_are_refused(reply, participants, results):
    answers = Answers(participants, results, (1, 1, 1), ("", "", ""))
    with pytest.raises(MessageError, match="expected"):
        answers.members(Cohorts(ASKED, (0, 0, 0), reply))


@pytest.mark.parametrize("key", ["participants", "results", "local-steps", "reasons"])
@pytest.mark.parametrize("wrong", [1.5, None, True])
def test_answers_that_are_no_whole_numbers_or_texts_are_refused(key, wrong):
    lists = Answers((4,), (0,), (1,), ("",)).to_record()
    with pytest.raises(MessageError, match=f"in the list {key} of answers, got {wrong}"):
        Answers.from_record({**lists, key: [wrong]})


def test_answers_of_different_lengths_are_refused():
    with pytest.raises(MessageError, match="one entry a participant"):
        Answers.from_record({"participants": [1, 2], "results": [0], "local-steps": [1], "reasons": [""]})


def test_records_are_numbered_only_where_there_are_several():
    assert [numbered("arrays", 0, 1), numbered("arrays", 1, 2)] == ["arrays", "arrays-1"]


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [-1, 4]},
        {"variants": [-1, -1, -1]},
        {"variants": [0, 0, 3]},
        {"participants": [float("inf"), 1, 2]},
        {"participants": [], "sizes": [], "variants": []},
    ],
)
def test_cohorts_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    record = {**Cohorts(((0, 1), (2,)), (0, 0, 1), "each").to_record(), **change}
    with pytest.raises(MessageError):
        Cohorts.from_record(record)


@pytest.mark.parametrize("names", ["", "{", "5", "null", "[" * 100_000])
def test_names_of_a_simulation_that_are_no_list_are_refused(names: str) -> None:
    record = Simulation("{}", "{}", 1, 1, "cpu", "float32").to_record()
    record["names"] = names
    with pytest.raises(MessageError, match="list of names"):
        Simulation.from_record(RecordDict({SIMULATION: record}))


def test_arrays_whose_bytes_cannot_be_read_are_refused() -> None:
    for array in (
        Array("float32", (2, 3), "numpy.ndarray", b"junk"),
        Array("float32", (2, 3), "numpy.ndarray", b""),
        Array("float32", (2, 3), "other", b""),
    ):
        content = Train(seed=1, server_round=2, model=MODEL, local=PlainLocal()).to_record()
        content["arrays"] = ArrayRecord({"w": array})
        with pytest.raises(MessageError, match="arrays that can be read"):
            Train.from_record(content)


def test_settings_that_are_nested_too_deep_are_refused() -> None:
    content = Train(seed=1, server_round=2, model=MODEL, local=PlainLocal()).to_record()
    content[CONFIG]["local"] = "[" * 100_000
    with pytest.raises(MessageError, match="'local'"):
        Train.from_record(content)


def test_more_examples_than_an_int64_counts_are_refused() -> None:
    content = HelloReply({}, np.array([1]), "ab").to_record()
    content["metrics"].update({"num-examples": 2**63, "held": [2**63]})
    with pytest.raises(MessageError, match="at least 0 examples"):
        HelloReply.from_record(content)


def test_of_a_model_with_a_backbone_a_message_says_which_weights_it_has() -> None:
    model = ModelSettings(backbone=TINY)
    asked = Train(seed=1, server_round=2, model=model, local=PlainLocal())
    read = Train.from_record(asked.to_record())
    assert read.backbone_sha256 == split(BackboneSettings.of(model)).weights_sha256
    assert read == asked
    without = Train(seed=1, server_round=2, model=MODEL, local=PlainLocal()).to_record()
    assert BACKBONE not in without[CONFIG]
    assert Train.from_record(without).backbone_sha256 == ""


# ----------------------------------------------------------------------------- one participant alone


@given(st.integers(0, 10**18 - 1))
def test_a_group_names_its_participant(participant: int) -> None:
    assert participant_of(group_of(participant)) == participant


@pytest.mark.parametrize(
    "group",
    ["", "3", "round 3", "participant-", "participant--3", "participant-x", "participant-" + "9" * 99],
)
def test_a_group_of_a_strategys_own_names_nobody(group: str) -> None:
    assert participant_of(group) == 0


# ----------------------------------------------------------------------------- bytes

TEXTS, NUMBERS = st.text(max_size=5), st.integers(-(2**62), 2**62)
VALUES = st.one_of(TEXTS, NUMBERS, st.floats(), st.booleans(), st.binary(max_size=5))


def lists_of(*kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of([st.lists(kind, min_size=1, max_size=4) for kind in kinds])


@given(st.dictionaries(TEXTS, VALUES | lists_of(TEXTS, NUMBERS, st.floats(), st.booleans())))
def test_bytes_are_those_that_flower_counts_where_it_counts(values: dict[str, Any]) -> None:
    record = ConfigRecord(values)
    empty = [key for key, value in values.items() if value in ("", b"")]
    for key in empty:
        with pytest.raises(ValueError, match="Config values"):
            record.count_bytes()
        values[key] = "x"
    assert count_bytes(record) == ConfigRecord(values).count_bytes() - len(empty)


def test_empty_texts_and_lists_are_their_keys_alone() -> None:
    assert count_bytes(ConfigRecord({"a": "", "bb": [], "ccc": b"", "d": "xy"})) == 1 + 2 + 3 + 1 + 2
    with pytest.raises(IndexError):  # as soon as this does not, Flower's own will do
        ConfigRecord({"bb": []}).count_bytes()
    metrics = MetricRecord({"a": [], "b": 1.0, "c": [1, 2]})
    assert count_bytes(metrics) == metrics.count_bytes() == 1 + 9 + 17
    arrays = ArrayRecord({"w": torch.zeros(3)})
    assert count_bytes(arrays) == arrays.count_bytes()
