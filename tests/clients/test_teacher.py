"""A stock train handler becomes a teacher handler."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.teacher import teacher
from kdfed.closed_form import Ridge
from kdfed.errors import ParticipantError
from kdfed.messages import TrainTeacher
from kdfed.private.flwr import identify, name_message
from kdfed.settings import ModelSettings, TeacherSettings

NOWHERE = ModelSettings(name="a_module_that_must_not_be_imported:net")


@pytest.fixture(autouse=True)
def _task() -> None:
    identify(1, 1)


def context() -> Context:
    return Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})


def message(more: dict[str, Any] | None = None, **settings: Any) -> Message:
    asked = TrainTeacher(
        seed=3,
        model=NOWHERE,
        settings=TeacherSettings(**{"epochs": 3, **settings}),
        arrays={} if settings.get("init") == "own" else {"w": torch.zeros(2)},
        inputs=torch.zeros(4, 2) if settings.get("upload") == "logits" else None,
        more=more or {},
    )
    sent = Message(asked.to_record(), 7, TrainTeacher.type, group_id="teachers")
    name_message(sent, "m")
    return sent


class Stock:
    """A train handler as any Flower app has one: it adds 1 to the weights, and keeps what it was given."""

    def __init__(self, **metrics: Any) -> None:
        self.metrics = metrics
        self.given: list[Message] = []

    def __call__(self, msg: Message, context: Context) -> Message:
        self.given.append(msg)
        context.state["calls"] = MetricRecord({"calls": len(self.given)})
        state = msg.content["arrays"].to_torch_state_dict()
        arrays = ArrayRecord({key: value + 1 for key, value in state.items()})
        metrics = {"train_loss": 1.0 / len(self.given), "num-examples": 5, **self.metrics}
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=msg)


def test_the_handler_is_called_for_every_epoch_with_what_it_replied_before() -> None:
    stock = Stock()
    reply = teacher(stock)(message(), context())
    starts = [msg.content["arrays"].to_torch_state_dict()["w"].tolist() for msg in stock.given]
    assert starts == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    assert reply.content["arrays"].to_torch_state_dict()["w"].tolist() == [3.0, 3.0]
    assert dict(reply.content["metrics"]) == {"train_loss": 1 / 3, "num-examples": 5}
    assert set(reply.content) == {"arrays", "metrics"}


def test_the_handler_gets_what_looks_like_a_train_message() -> None:
    stock = Stock()
    sent, here = message({"lr": 0.1, "names": ["a", "b"]}), context()
    reply = teacher(stock)(sent, here)
    for msg in stock.given:
        assert msg.metadata.message_type == "train"
        assert set(msg.content) == {"arrays", "config"}
        config = msg.content["config"]
        assert (config["lr"], config["names"], config["server-round"]) == (0.1, ["a", "b"], 0)
        assert msg.metadata.dst_node_id == 7
    assert reply.metadata.message_type == sent.metadata.message_type == "train.teacher"
    assert reply.metadata.reply_to_message_id == "m"
    assert here.state["calls"] == MetricRecord({"calls": 3})


def test_a_handler_that_changes_its_config_does_not_change_that_of_the_next_epoch() -> None:
    seen = []

    def greedy(msg: Message, context: Context) -> Message:
        seen.append(msg.content["config"]["lr"])
        msg.content["config"]["lr"] = 0.0
        return Stock()(msg, context)

    teacher(greedy)(message({"lr": 0.1}), context())
    assert seen == [0.1, 0.1, 0.1]


def test_local_steps_are_those_of_all_epochs_where_they_are_told() -> None:
    reply = teacher(Stock(**{"local-steps": 4}))(message(), context())
    assert reply.content["metrics"]["local-steps"] == 12


def test_nothing_that_a_message_names_is_imported() -> None:
    sent = message()
    assert json.loads(sent.content["config"]["model"])["name"] == NOWHERE.name
    assert not teacher(Stock())(sent, context()).has_error()
    assert NOWHERE.name.partition(":")[0] not in sys.modules


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"upload": "logits"}, r"teachers\.upload: weights, got 'logits'.*knows no transfer set; set it"),
        ({"init": "own"}, r"teachers\.init: common, got 'own'.*starts from the arrays that it is sent"),
    ],
)
def test_what_a_train_handler_cannot_do_is_refused_before_it_is_called(
    settings: dict[str, str], text: str
) -> None:
    stock = Stock()
    with pytest.raises(ParticipantError, match=text):
        teacher(stock)(message(**settings), context())
    assert stock.given == []


def test_what_the_handler_raises_is_raised() -> None:
    def broken(msg: Message, context: Context) -> Message:
        return msg.content["config"]["no such key"]  # type: ignore[no-any-return]

    with pytest.raises(KeyError, match="no such key"):
        teacher(broken)(message(), context())


def test_an_error_reply_of_the_handler_is_the_teachers() -> None:
    reply = teacher(lambda msg, context: Message(Error(7, "out of memory"), reply_to=msg))(
        message(), context()
    )
    assert (reply.error.code, reply.error.reason) == (7, "out of memory")
    assert reply.metadata.message_type == "train.teacher"


def test_a_reply_without_arrays_is_refused() -> None:
    def forgetful(msg: Message, context: Context) -> Message:
        return Message(RecordDict({"weights": msg.content["arrays"]}), reply_to=msg)

    with pytest.raises(ParticipantError, match=r"an ArrayRecord 'arrays'.*got ArrayRecord 'weights' of 1"):
        teacher(forgetful)(message(), context())


def test_a_decorated_handler_is_one_line_more() -> None:
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        return Stock()(msg, context)

    app.train("teacher")(teacher(train))
    reply = app(message(), context())
    assert reply.content["arrays"].to_torch_state_dict()["w"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (None, "to return a Message, got None"),
        ({"w": 1}, "to return a Message, got {'w': 1}"),
        (RecordDict({"arrays": ArrayRecord(), "metrics": MetricRecord()}), "ArrayRecord 'arrays' of 0"),
        (RecordDict(), "got none"),
    ],
)
def test_a_train_handler_that_returns_something_else_is_told_so(reply: object, told: str) -> None:
    def train(msg: Message, context: Context) -> Any:
        return Message(reply, reply_to=msg) if isinstance(reply, RecordDict) else reply

    with pytest.raises(ParticipantError, match=told):
        teacher(train)(message(), context())


@pytest.mark.parametrize("steps", [6.0, [1, 2]])
def test_local_steps_that_are_no_whole_number_are_not_replaced_by_0(steps: Any) -> None:
    with pytest.raises(ParticipantError, match="local-steps as a whole number"):
        teacher(Stock(**{"local-steps": steps}))(message(), context())


def test_a_train_handler_knows_no_features_to_send_sums_of() -> None:
    asked = TrainTeacher(
        seed=3, model=NOWHERE, settings=TeacherSettings(), arrays={"w": torch.zeros(2)}, head=Ridge()
    )
    sent = Message(asked.to_record(), 7, TrainTeacher.type, group_id="teachers")
    with pytest.raises(ParticipantError, match=r"remove 'with-teachers' from closed-form\.at"):
        teacher(Stock())(sent, context())


def test_train_config_may_have_words_of_its_own() -> None:
    """``head`` is one of many apps; what asks for statistics has another key."""
    stock = Stock()
    teacher(stock)(message({"head": "linear"}), context())
    assert stock.given[0].content["config"]["head"] == "linear"
