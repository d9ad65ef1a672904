"""When the arm runner evaluates a round: at once, or while the nodes train for the next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg

from clients.client_app import app
from kdfed import wire
from kdfed.errors import RunError
from simulations.engines.inprocess import InProcessGrid

NEVER = (1.0,)
"""A target that nobody reaches: whether to stop is asked after every round, so nothing can overlap."""


class Watched(InProcessGrid):
    """Notes when training is sent and looked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: list[str] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages[0].metadata.message_type == wire.TRAIN:
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
    assert _order(run_arm, tiny(**{"rounds.max": 2})) == [
        *("push", "record 0", "pull"),
        *("push", "record 1", "pull"),
        "record 2",
    ]


@pytest.mark.parametrize(
    ("changes", "config"),
    [({}, {"targets": NEVER}), ({"rounds.plateau": {"rounds": 9, "stop": True}}, {})],
)
def test_where_a_stop_hangs_on_it_a_round_is_evaluated_before_the_next(tiny, run_arm, changes, config):
    assert _order(run_arm, tiny(**{"rounds.max": 2, **changes}), **config) == [
        *("record 0", "push", "pull"),
        *("record 1", "push", "pull"),
        "record 2",
    ]


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"rounds.stop-at-target": False}, {"targets": NEVER}),
        ({"rounds.plateau": {"rounds": 9, "stop": True}}, {"targets": NEVER, "never_stop": True}),
    ],
)
def test_targets_that_stop_nothing_do_not_make_the_nodes_wait(tiny, run_arm, changes, config):
    assert _order(run_arm, tiny(**{"rounds.max": 1, **changes}), **config) == [
        *("push", "record 0", "pull"),
        "record 1",
    ]


def test_a_strategy_that_evaluates_on_clients_has_the_round_evaluated_first(tiny, run_arm):
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    order = _order(run_arm, tiny(**{"rounds.max": 2}), strategy=strategy)
    assert [step for step in order if step != "pull"] == ["push", "record 0", "record 1", "push", "record 2"]


@pytest.mark.parametrize("arm", ["cold", "consolidated"])
def test_records_are_the_same_whenever_a_round_is_evaluated(tiny, run_arm, arm):
    def run(**config: Any) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]], dict[str, torch.Tensor]]:
        events: list[tuple[Any, ...]] = []
        result = run_arm(
            tiny(),
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
