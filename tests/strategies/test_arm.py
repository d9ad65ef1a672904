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
from kdfed.errors import ConfigError, RunError
from kdfed.messages import Train
from simulations.engines.inprocess import InProcessGrid
from strategies.wrapped import layers

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
