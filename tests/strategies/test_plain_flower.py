"""Devices of a plain Flower app: their messages, Flower's mods and its strategies of differential privacy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, arrays_size_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)

from clients.teacher import teacher
from kdfed.errors import ConfigError, RunError
from kdfed.private.flwr import CLIPPING_NORM, SAMPLING_SLEEP, sample_nodes
from simulations.engines.inprocess import InProcessGrid
from strategies.pre_consolidation import PreConsolidation
from tests.strategies.test_around import Net, around, client_app

NORM = 0.01


def fedavg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


FIXED = DifferentialPrivacyClientSideFixedClipping
ADAPTIVE = DifferentialPrivacyClientSideAdaptiveClipping


def private(kind: type[Strategy]) -> Strategy:
    """Return FedAvg in a strategy of differential privacy that draws next to no noise."""
    if "Adaptive" in kind.__name__:
        return kind(
            fedavg(), noise_multiplier=1e-9, num_sampled_clients=3, initial_clipping_norm=NORM,
            clip_norm_lr=1e-9, clipped_count_stddev=1e-9,
        )  # fmt: skip
    return kind(fedavg(), noise_multiplier=1e-9, clipping_norm=NORM, num_sampled_clients=3)


def app_with(*mods: Any, on_train: Any = ()) -> tuple[ClientApp, list[Message]]:
    """Return an app with mods, for everything or for its train handler alone; and what that was given."""
    seen: list[Message] = []
    handlers, app = client_app(seen), ClientApp(mods=list(mods))

    def train(msg: Message, context: Context) -> Message:
        return handlers(msg, context)

    app.train(mods=list(on_train))(train)
    app.train("teacher")(teacher(train))
    return app, seen


class Recording(InProcessGrid):
    """Keeps every message and every reply that crossed the network."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__(app, 3)
        self.sent, self.came = list[Message](), list[Message]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.came += replies
        return replies


def run(strategy: PreConsolidation, app: ClientApp, **more: Any) -> tuple[Any, Recording]:
    torch.manual_seed(0)
    grid = Recording(app)
    config = {"num_rounds": 2, "train_config": ConfigRecord({"lr": 0.1}), **more}
    return strategy.start(grid, ArrayRecord(Net().state_dict()), **config), grid


def distance(one: ArrayRecord, other: ArrayRecord) -> float:
    states = [record.to_torch_state_dict() for record in (one, other)]
    return math.sqrt(sum(float((states[0][key] - states[1][key]).square().sum()) for key in states[0]))


# ----------------------------------------------------------------------------- messages


def test_a_device_gets_what_its_strategy_put_in_and_one_config() -> None:
    result, grid = run(around(fedavg(), teacher_epochs=1), client_app())
    assert [record.answered for record in result.records] == [3, 3, 3]
    assert [message.metadata.message_type for message in grid.sent] == ["train.teacher"] * 3 + ["train"] * 6
    for message in grid.sent:
        assert set(message.content) == {"arrays", "config"}
    for reply in grid.came:
        assert set(reply.content) == {"arrays", "metrics"}


def test_the_ledger_counts_exactly_what_devices_were_sent_and_sent() -> None:
    result, grid = run(around(fedavg(), teacher_epochs=1), client_app(steps=6))
    totals = result.records[-1]
    assert totals.bytes_down == sum(r.count_bytes() for m in grid.sent for r in m.content.values())
    assert totals.bytes_up == sum(r.count_bytes() for m in grid.came for r in m.content.values())


def test_a_device_learns_its_number_where_the_strategy_has_no_group_of_its_own() -> None:
    class Grouping(FedAvg):
        def configure_train(self, *args: Any) -> list[Message]:
            messages = list(super().configure_train(*args))
            for message in messages:
                message.metadata.group_id = "mine"
            return messages

    _, grid = run(around(fedavg(), start="random"), client_app(), num_rounds=1)
    assert [m.metadata.group_id for m in grid.sent] == ["participant-0", "participant-1", "participant-2"]
    _, grid = run(around(Grouping(fraction_evaluate=0.0), start="random"), client_app(), num_rounds=1)
    assert [m.metadata.group_id for m in grid.sent] == ["mine"] * 3


# ----------------------------------------------------------------------------- mods and differential privacy


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize(
    ("kind", "mod"), [(FIXED, fixedclipping_mod), (ADAPTIVE, adaptiveclipping_mod)], ids=["fixed", "adaptive"]
)
def test_flowers_clipping_mods_clip_rounds_and_let_teachers_be(
    kind: type[Strategy], mod: Any, everywhere: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = app_with(mod) if everywhere else app_with(on_train=[mod])
    result, grid = run(around(private(kind), teacher_epochs=2), app)
    assert [(record.answered, record.absent) for record in result.records] == [(3, ())] * 3
    teachers, rounds = grid.sent[:3], grid.sent[3:]
    assert all(message.content["config"][CLIPPING_NORM] == math.inf for message in teachers)
    for message, reply in zip(grid.sent, grid.came, strict=True):
        moved = distance(message.content["arrays"], reply.content["arrays"])
        if message in rounds:
            assert moved == pytest.approx(NORM, rel=1e-3)
        else:
            assert moved > 10 * NORM
    told = "differential privacy covers the rounds, not the teachers"
    assert len([line for line in caplog.messages if told in line]) == 1
    assert len(seen) == 3 * 2 + 2 * 3


@pytest.mark.parametrize(
    "kind", [DifferentialPrivacyServerSideFixedClipping, DifferentialPrivacyServerSideAdaptiveClipping]
)
def test_clipping_on_the_server_works_inside_too(kind: type[Strategy]) -> None:
    result, _ = run(around(private(kind), start="random"), client_app(), num_rounds=1)
    assert [record.answered for record in result.records] == [0, 3]


def test_a_mod_of_local_privacy_and_one_that_measures_cover_teachers_too() -> None:
    mods = [LocalDpMod(clipping_norm=NORM, sensitivity=1e-9, epsilon=1.0, delta=1e-5), arrays_size_mod]
    app, _ = app_with(*mods)
    result, grid = run(around(fedavg(), teacher_epochs=1), app)
    assert [(record.answered, record.absent) for record in result.records] == [(3, ())] * 3
    for message, reply in zip(grid.sent, grid.came, strict=True):
        assert distance(message.content["arrays"], reply.content["arrays"]) < 1.1 * NORM


@pytest.mark.parametrize("kind", [FIXED, ADAPTIVE])
def test_differential_privacy_around_it_is_refused_because_it_would_skip_the_warm_start(
    kind: type[Strategy],
) -> None:
    inner = around(fedavg(), teacher_epochs=1)
    outer = private(kind)
    outer.strategy = inner  # type: ignore[attr-defined]
    grid = Recording(client_app())
    with pytest.raises(ConfigError, match=r"expected PreConsolidation outermost.*put that one inside"):
        outer.start(grid, ArrayRecord(Net().state_dict()), num_rounds=1)
    assert grid.sent == []


# ----------------------------------------------------------------------------- minima


class Wrapping(Strategy):
    """Holds another one, under a name of its own."""

    def __init__(self, inner: Strategy, **options: Any) -> None:
        self.other = inner
        vars(self).update(options)

    def configure_train(self, *args: Any) -> Any:
        return self.other.configure_train(*args)

    def aggregate_train(self, *args: Any) -> Any:
        return self.other.aggregate_train(*args)

    def configure_evaluate(self, *args: Any) -> Any:
        return self.other.configure_evaluate(*args)

    def aggregate_evaluate(self, *args: Any) -> Any:
        return self.other.aggregate_evaluate(*args)

    def summary(self) -> None:
        self.other.summary()


@pytest.mark.parametrize(
    ("strategy", "option"),
    [
        (lambda: Wrapping(FedAvg(fraction_evaluate=0.0, min_available_nodes=4)), "min_available_nodes"),
        (lambda: Wrapping(FedAvg(fraction_evaluate=0.0, min_train_nodes=4)), "min_train_nodes"),
        (lambda: Wrapping(fedavg(), min_available_nodes=4), "min_available_nodes"),
        (
            lambda: FIXED(FedAvg(fraction_evaluate=0.0, min_available_nodes=4), 1.0, 1.0, 3),
            "min_available_nodes",
        ),
    ],
)
def test_a_minimum_that_can_never_be_met_is_refused_wherever_it_is_said(strategy: Any, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: expected at most the 3 participants sampled, got 4"):
        around(strategy())


def test_a_strategy_that_waits_without_saying_for_whom_is_stopped_in_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock runs as fast as ``sample_nodes`` sleeps, a second between two looks."""

    class Silent(Wrapping):
        def configure_train(self, *args: Any) -> Any:
            return sample_nodes(args[-1], 4, 4)

    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(SAMPLING_SLEEP, sleep)
    monkeypatch.setattr("strategies.participant_grid.time.monotonic", lambda: now)
    with pytest.raises(RunError, match="waits for more participants than the 3 that can be reached"):
        run(around(Silent(fedavg()), start="random"), client_app())
    assert now < 30


# ----------------------------------------------------------------------------- empty texts and lists


def test_empty_texts_and_lists_in_configs_and_metrics_do_not_end_a_run() -> None:
    app, given = ClientApp(), list[ConfigRecord]()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        given.append(msg.content["config"])
        state = msg.content["arrays"].to_torch_state_dict()
        arrays = ArrayRecord({key: value + 0.001 for key, value in state.items()})
        metrics = MetricRecord({"num-examples": 5, "notes": []})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)

    app.train("teacher")(teacher(train))
    empty = {"lr": 0.1, "note": "", "blob": b"", "tags": []}
    for strategy in (fedavg(), Wrapping(fedavg())):  # one mean, and each reply
        given.clear()
        result, grid = run(around(strategy, teacher_epochs=1), app, train_config=ConfigRecord(empty))
        assert [(record.answered, record.absent) for record in result.records] == [(3, ())] * 3
        assert len(given) == 9
        assert all({key: config[key] for key in empty} == empty for config in given)
        keys = sum(map(len, empty)) + 8  # the rate is a number
        first = grid.sent[0].content
        without = {key: value for key, value in first["config"].items() if key not in empty}
        size = first["arrays"].count_bytes() + ConfigRecord(without).count_bytes() + keys
        assert result.records[0].bytes_down == 3 * size
        assert result.records[0].bytes_up == 3 * (first["arrays"].count_bytes() + 12 + 8 + 5)


def test_teachers_see_the_train_config_of_a_strategy_in_differential_privacy() -> None:
    app, seen = app_with(on_train=[fixedclipping_mod])
    more = ConfigRecord({"lr": 0.1, "note": "x", "sizes": [1, 2]})
    run(around(private(FIXED), teacher_epochs=2), app, num_rounds=1, train_config=more)
    configs = [message.content["config"] for message in seen]
    assert [config["server-round"] for config in configs] == [0] * 6 + [1] * 3
    assert {(config["note"], tuple(config["sizes"])) for config in configs} == {("x", (1, 2))}
