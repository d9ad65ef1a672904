"""When the arm runner evaluates a round: at once, or while the nodes train for the next."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAvg,
    FedProx,
    Strategy,
)

from clients.client_app import app
from kdfed.averaging import average_states
from kdfed.config import server_labels
from kdfed.data import prepare
from kdfed.errors import ConfigError, RunError
from kdfed.listeners import Listener, Round
from kdfed.messages import Hello, Train
from kdfed.models import State, state_of
from kdfed.server_model import fit_server_model
from simulations.engines.inprocess import InProcessGrid
from simulations.server_app import data_facts, server_data
from strategies.arm import initial_state
from strategies.wrapped import layers

SERVER = {"arms": {"cold": {}, "own": {"start": "server", "server-fit.epochs": 100}}}

NEVER = (1.0,)
"""A target that nobody reaches: whether to stop is asked after every round, so nothing can overlap."""

AT_TARGET = {"rounds.stop-at-target": True, "targets": [0.99]}
ON_PLATEAU = {"rounds.plateau": {"rounds": 9, "stop": True}}


class Watched(InProcessGrid):
    """Notes when training is sent and looked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: list[str] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages[0].metadata.message_type == Train.type:
            self.steps.append("push")
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._pending and "push" in self.steps:
            self.steps.append("pull")
        return super().pull_messages(message_ids)


def _order(run_arm: Any, experiment: Any, **config: Any) -> list[str]:
    grid = Watched(app, 1)
    run_arm(experiment, grid=grid, on_record=lambda r: grid.steps.append(f"record {r.round}"), **config)
    return grid.steps


def test_a_round_is_evaluated_while_the_nodes_train_for_the_next(tiny, run_arm):
    assert _order(run_arm, tiny(**{"rounds.horizon": 2})) == [
        *("push", "record 0", "pull"),
        *("push", "record 1", "pull"),
        "record 2",
    ]


@pytest.mark.parametrize(
    ("changes", "config"),
    [(AT_TARGET, {"targets": NEVER}), (ON_PLATEAU, {})],
)
def test_where_a_stop_hangs_on_it_a_round_is_evaluated_before_the_next(tiny, run_arm, changes, config):
    assert _order(run_arm, tiny(only="cold", **{"rounds.horizon": 2, **changes}), **config) == [
        *("record 0", "push", "pull"),
        *("record 1", "push", "pull"),
        "record 2",
    ]


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({}, {"targets": NEVER}),
        (AT_TARGET, {"targets": ()}),
        ({**AT_TARGET, **ON_PLATEAU}, {"targets": NEVER, "never_stop": True}),
    ],
)
def test_targets_that_stop_nothing_do_not_make_the_nodes_wait(tiny, run_arm, changes, config):
    assert _order(run_arm, tiny(only="cold", **{"rounds.horizon": 1, **changes}), **config) == [
        *("push", "record 0", "pull"),
        "record 1",
    ]


def test_a_strategy_that_evaluates_on_clients_has_the_round_evaluated_first(tiny, run_arm):
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    order = _order(run_arm, tiny(**{"rounds.horizon": 2}), strategy=strategy)
    assert [step for step in order if step != "pull"] == ["push", "record 0", "record 1", "push", "record 2"]


@pytest.mark.parametrize("arm", ["cold", "consolidated"])
def test_records_are_the_same_whenever_a_round_is_evaluated(tiny, run_arm, arm):
    def run(**config: Any) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]], dict[str, torch.Tensor]]:
        events: list[tuple[Any, ...]] = []
        result = run_arm(
            tiny(only=arm, **AT_TARGET),
            arm,
            on_event=lambda e: events.append((e.phase, e.step, e.accuracy, e.bytes, e.participant_uploads)),
            **config,
        )
        records = [{**vars(record), "seconds": 0} for record in result.records]
        return records, events, dict(result.arrays.to_torch_state_dict())

    later, at_once = run(), run(targets=NEVER)
    assert later[:2] == at_once[:2]
    assert all(torch.equal(later[2][key], at_once[2][key]) for key in later[2])


def test_a_round_that_fails_does_not_lose_the_evaluation_before_it(tiny, run_arm):
    class Impatient(FedAvg):
        def configure_train(self, server_round: int, *args: Any, **kwargs: Any) -> Iterable[Message]:
            if server_round == 2:
                raise RunError("no more")
            return super().configure_train(server_round, *args, **kwargs)

    records: list[Any] = []
    strategy = Impatient(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    with pytest.raises(RunError, match="no more"):
        run_arm(tiny(), strategy=strategy, on_record=records.append)
    assert [record.round for record in records] == [0, 1]


# ----------------------------------------------------------------------------- nobody waits for ever


class Withholding(InProcessGrid):
    """The first node never answers a training message."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        def is_held(message: Message | None) -> bool:
            metadata = None if message is None else message.metadata
            return metadata is not None and (metadata.dst_node_id, metadata.message_type) == (
                1001,
                Train.type,
            )

        return super().pull_messages([i for i in message_ids if not is_held(self._pending.get(i))])


def _returns(function: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what a call returns, which must happen: it runs beside this thread, and is given up on."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits for ever"
    return results[0]


def _private(strategy: Strategy) -> Strategy:
    """Wrap a strategy twice."""
    inner = DifferentialPrivacyServerSideAdaptiveClipping(strategy, 0.1, 5, clipped_count_stddev=1.0)
    return DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, 5, clipped_count_stddev=1.0)


def test_layers_are_a_strategy_and_whatever_it_wraps():
    inner = FedAvg()
    assert [type(layer).__name__ for layer in layers(_private(inner))] == [
        "DifferentialPrivacyServerSideAdaptiveClipping",
        "DifferentialPrivacyServerSideAdaptiveClipping",
        "FedAvg",
    ]
    inner.strategy = inner  # type: ignore[attr-defined]
    assert layers(inner) == [inner]


@pytest.mark.parametrize("wrap", [lambda strategy: strategy, _private])
def test_an_evaluation_trip_with_too_few_participants_is_left_out_and_said(tiny, run_arm, caplog, wrap):
    """Four of five are still busy, and FedAvg evaluates on two at least unless told otherwise."""
    changes = {"server.cohort-size": 4, "server.deadlines.train": 1, "rounds.horizon": 1}
    strategy = wrap(FedAvg(min_train_nodes=1, min_available_nodes=1))
    result = _returns(lambda: run_arm(tiny(**changes), strategy=strategy, grid=Withholding(app, 2)))
    assert result.records[-1].answered == 1
    assert result.evaluate_metrics_clientapp == {}
    (text,) = [text for text in caplog.messages if "no evaluation by participants" in text]
    assert "because 1 can be reached and min_evaluate_nodes is 2" in text


def test_an_evaluation_trip_that_can_be_made_is_made(tiny, run_arm):
    strategy = FedAvg(min_train_nodes=1, min_available_nodes=1)
    result = run_arm(tiny(**{"rounds.horizon": 1}), strategy=strategy)
    assert set(result.evaluate_metrics_clientapp) == {1}


@pytest.mark.parametrize("wrap", [lambda strategy: strategy, _private])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_evaluate_nodes": 6},
            r"min_evaluate_nodes: expected at most the 5 participants sampled, got 6",
        ),
        ({"min_train_nodes": 6}, r"min_train_nodes: expected at most the 5 participants sampled, got 6"),
        ({"min_available_nodes": 6}, r"min_available_nodes: expected at most the 5"),
        ({"fraction_evaluate": 1.5}, r"fraction_evaluate: expected a share from 0 to 1"),
        ({"fraction_evaluate": -0.5}, r"fraction_evaluate: expected a share from 0 to 1"),
        ({"fraction_evaluate": float("nan")}, r"fraction_evaluate: expected a share from 0 to 1"),
        ({"fraction_train": 0.5}, r"fraction_train: expected 1\.0, got 0\.5; set server\.sampled instead"),
    ],
)
def test_what_would_wait_for_ever_or_sample_is_refused_before_anything_starts(
    tiny, run_arm, wrap, options, message
):
    with pytest.raises(ConfigError, match=message):
        _raises(lambda: run_arm(tiny(), strategy=wrap(FedAvg(**options))))


def _raises(function: Callable[[], Any]) -> None:
    """Raise what a call raises, under the watch of :func:`_returns`."""

    def caught() -> Exception | None:
        try:
            function()
        except Exception as error:
            return error
        return None

    error = _returns(caught)
    if error is not None:
        raise error


def test_the_proximal_term_of_a_wrapped_strategy_is_looked_at_too(tiny, run_arm):
    with pytest.raises(ConfigError, match=r"proximal_mu: expected arm\.local of mode 'proximal'"):
        run_arm(tiny(), strategy=_private(FedProx(proximal_mu=0.1)))


def test_who_is_evaluated_on_is_drawn_with_the_runs_seed(tiny, run_arm):
    """Flower draws from Python's global generator, which is left as it was."""

    class Noting(FedAvg):
        def configure_evaluate(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
            messages = list(super().configure_evaluate(*args, **kwargs))
            chosen.append(sorted(message.metadata.dst_node_id for message in messages))
            return messages

    draws = []
    for state in (1, 2):
        chosen: list[list[int]] = []
        random.seed(state)
        expected = random.Random(state).random()
        strategy = Noting(
            min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1, fraction_evaluate=0.6
        )
        run_arm(tiny(**{"rounds.horizon": 6}), strategy=strategy)
        assert random.random() == expected
        draws.append(chosen)
    assert draws[0] == draws[1]
    assert [len(chosen) for chosen in draws[0]] == [3] * 6
    assert len({tuple(chosen) for chosen in draws[0]}) > 1, "another draw each round"


# ----------------------------------------------------------------------------- from the server's labels


def test_the_servers_own_start_asks_no_participant_for_anything(tiny, run_arm):
    """Its record says what hello cost, as a cold start's does; the federated rounds then begin from it."""
    grid = Sent(app, 2)
    records = run_arm(tiny(**SERVER, **{"rounds.horizon": 1}), "own", grid=grid).records
    assert grid.types == [Hello.type, Hello.type, Train.type, Train.type]
    cold = run_arm(tiny(**SERVER, **{"rounds.horizon": 1})).records
    for own, other in zip(records, cold, strict=True):
        assert (own.exchanges, own.participant_uploads, own.answered) == (
            other.exchanges,
            other.participant_uploads,
            other.answered,
        )
        assert (own.bytes_up, own.bytes_down, own.local_steps) == (
            other.bytes_up,
            other.bytes_down,
            other.local_steps,
        )
    assert (records[0].phase, records[0].exchanges, records[0].participant_uploads) == ("start", 0, 0)
    assert (records[0].local_steps, records[0].answered, records[0].absent) == (0, 0, ())
    assert records[0].accuracy > 0.4 > cold[0].accuracy


class Sent(InProcessGrid):
    """Notes the types of all messages."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.types: list[str] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.types += [message.metadata.message_type for message in messages]
        return super().push_messages(messages)


@pytest.mark.parametrize("labels", [False, True])
def test_the_servers_own_model_is_fitted_to_its_labels_alone_from_the_seeds_initial_weights(
    tiny, run_arm, monkeypatch, labels
):
    given: dict[str, Any] = {}

    def fit(model: Any, examples: Any, settings: Any, seed: int, **more: Any) -> int:
        given.update(state=state_of(model), examples=examples, settings=settings)
        return fit_server_model(model, examples, settings, seed, **more)

    monkeypatch.setattr("strategies.arm.fit_server_model", fit)
    experiment = tiny(**SERVER, **{"rounds.horizon": 0, "arms.own.server-fit.labels": labels})
    first = run_arm(experiment, "own").arrays.to_torch_state_dict()
    arm = experiment.arm("own")
    data = prepare(arm.data)
    rows = [data.splits.validation, *([data.splits.transfer] if labels else [])]
    expected = [data.examples(part) for part in rows]
    assert torch.equal(given["examples"].inputs, torch.cat([part.inputs for part in expected]))
    assert torch.equal(given["examples"].labels, torch.cat([part.labels for part in expected]))
    assert given["settings"] == arm.server_fit
    common = initial_state(arm, server_data(data), experiment.seeds[0])
    assert all(torch.equal(common[key], value) for key, value in given["state"].items())
    again = run_arm(experiment, "own", nodes=1).arrays.to_torch_state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_a_regression_can_start_from_the_servers_labels(tiny, run_arm):
    data = {"source": "diabetes", "task": "regression"}
    soft = {"consolidation.temperature": 1.0, "consolidation.ensemble": "mean-logits"}
    experiment = tiny(**SERVER, **soft, **{"rounds.horizon": 0, "data": data})
    assert run_arm(experiment, "own").records[0].accuracy > 0.2 > run_arm(experiment).records[0].accuracy


def test_a_server_model_that_diverged_stops_the_run_and_blames_no_participant(tiny, run_arm):
    wild = {"optimizer": "sgd", "lr": 1000.0, "weight-decay": 1000.0}
    experiment = tiny(arms={"own": {"start": "server", "server-fit": wild}})
    with pytest.raises(RunError) as raised:
        run_arm(experiment, "own")
    said = str(raised.value)
    assert said.startswith("the server's own model: expected a finite model, got ")
    assert said.endswith("; lower server-fit.lr. Left out: nobody")


@pytest.mark.parametrize(("labels", "counted"), [(False, 20), (True, 60)])
def test_the_labels_that_the_servers_own_model_is_fitted_to_are_counted(tiny, labels, counted):
    experiment = tiny(**SERVER, **{"arms.own.server-fit.labels": labels})
    assert server_labels(experiment.arm("own"), 20, 40) == counted
    assert server_labels(experiment.arm("cold"), 20, 40) == 0
    data = prepare(experiment.data)
    facts = data_facts(experiment, data)
    held = len(data.splits.validation), len(data.splits.transfer)
    assert facts.control_labels == held[0] + held[1] * labels


class Kept(Listener):
    """Keeps the models that listeners are shown."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def on_trained(self, ended: Round) -> None:
        self.states.append(dict(ended.state))


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm"])
def test_the_mean_of_several_rounds_is_shown_and_delivered_and_rounds_go_on_as_without_it(
    tiny, run_arm, strategy
):
    """The plain run's own models, averaged by hand, are what the run with ``server.average`` shows."""
    changes = {"rounds.horizon": 4, "server.strategy": strategy}
    plain, shown = Kept(), Kept()
    without = run_arm(tiny(**changes), listeners=(plain,))
    result = run_arm(tiny(**changes, **{"server.average": {"last": 2, "from": 2}}), listeners=(shown,))
    start, one, two, three, four = plain.states
    by_hand = [start, one, two, *(average_states(pair, [1, 1]) for pair in ((two, three), (three, four)))]
    for state, wanted in zip(shown.states, by_hand, strict=True):
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    delivered = result.arrays.to_torch_state_dict()
    assert all(torch.equal(delivered[key], value) for key, value in by_hand[-1].items())
    costs = ("exchanges", "participant_uploads", "bytes_up", "bytes_down", "local_steps")
    for own, plain_one in zip(result.records, without.records, strict=True):
        assert all(getattr(own, cost) == getattr(plain_one, cost) for cost in costs)
    assert [r.loss for r in result.records[:3]] == [r.loss for r in without.records[:3]]
    assert result.records[4].loss != without.records[4].loss


def test_the_start_is_in_no_mean(tiny, run_arm):
    plain = run_arm(tiny(**{"rounds.horizon": 1}), "consolidated")
    result = run_arm(tiny(**{"rounds.horizon": 1, "server.average": {"last": 5}}), "consolidated")
    a, b = (one.arrays.to_torch_state_dict() for one in (plain, result))
    assert all(torch.equal(a[key], b[key]) for key in a)
