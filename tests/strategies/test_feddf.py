"""FedDF: the momentum beneath it, and the share of the distilled model, each against the same by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from kdfed.averaging import average_states
from kdfed.errors import ConfigError
from kdfed.listeners import Listener, Round
from kdfed.metrics import SERVER_STEPS
from kdfed.models import State
from strategies.feddf import FedDF, MixSettings

FEDDF = {"server.strategy": "feddf", "server.distillation.epochs": 1, "server.distillation.lr": 0.01}
BATCH_NORM = {"name": "cnn", "options": {"width": 4, "norm": "batch"}}


def shares(rounds: int, **mix: float) -> list[float]:
    return [MixSettings(**mix).share(number) for number in range(1, rounds + 1)]


def test_a_worked_number_of_the_share() -> None:
    """0.8, 0.8 x 0.2 = 0.16, 0.8 x 0.04 = 0.032, then 0.0064, which is below 0.01."""
    assert shares(5, start=0.8, decay=0.2) == pytest.approx([0.8, 0.16, 0.032, 0, 0])
    assert shares(3) == [1, 1, 1]
    assert shares(3, decay=0.0) == [1, 0, 0]


class Kept(Listener):
    """Keeps the models that listeners are shown, and what the strategy says of each round."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.metrics: list[dict[str, Any]] = []

    def on_trained(self, ended: Round) -> None:
        self.states.append(dict(ended.state))
        self.metrics.append(ended.metrics)


class Followed:
    """Notes the mean of each round's models, what they are distilled into, and what comes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.means: list[State] = []
        self.before: list[State] = []
        self.after: list[State] = []
        aggregate, distil = FedDF.aggregate_train, FedDF._distil

        def aggregated(
            strategy: FedDF, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            replies = list(replies)
            mean, _ = FedAvg.aggregate_train(strategy, server_round, list(replies))
            assert mean is not None
            self.means.append(dict(mean.to_torch_state_dict()))
            return aggregate(strategy, server_round, replies)

        def distilled(strategy: FedDF, *given: Any) -> tuple[State, int]:
            state, steps = distil(strategy, *given)
            self.before.append(given[1])
            self.after.append(state)
            return state, steps

        monkeypatch.setattr(FedDF, "aggregate_train", aggregated)
        monkeypatch.setattr(FedDF, "_distil", distilled)


@pytest.mark.parametrize("model", [{"name": "mlp", "options": {"hidden": [16]}}, BATCH_NORM])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rounds_are_those_by_hand(tiny, run_arm, monkeypatch, model, momentum):
    """y = x - v with v = m v + (x - a), and the next x is 3/4 y and 1/4 distilled, then 1/2 of that."""
    followed, kept = Followed(monkeypatch), Kept()
    mix = {"start": 0.25, "decay": 0.5}
    changes = {**FEDDF, "model": model, "rounds.horizon": 3, "server.momentum": momentum, "server.mix": mix}
    run_arm(tiny(**changes), listeners=(kept,))
    speed: State = {}
    assert len(followed.after) == 3
    for number, share in enumerate((0.25, 0.125, 0.0625)):
        sent, mean, distilled = kept.states[number], followed.means[number], followed.after[number]
        for key, value in followed.before[number].items():
            x, a = sent[key].double(), mean[key].double()
            speed[key] = momentum * speed.get(key, 0) + (x - a)
            y = a if "running" in key or "num_batches" in key else x - speed[key]
            after = (1 - share) * y + share * distilled[key].double()
            close = {
                "rtol": 1e-4,
                "atol": 1e-6 if sent[key].is_floating_point() else 1,
            }  # counters are rounded
            torch.testing.assert_close(value.double(), y, **close)
            torch.testing.assert_close(kept.states[number + 1][key].double(), after, **close)


def test_distilled_whole_in_every_round_is_what_it_was_without_the_keys(tiny, run_arm):
    plain, told = Kept(), Kept()
    run_arm(tiny(**FEDDF), listeners=(plain,))
    run_arm(tiny(**FEDDF, **{"server.mix": {"start": 1.0, "decay": 1.0}}), listeners=(told,))
    for a, b in zip(plain.states, told.states, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("momentum", "rival"), [(0.0, "fedavg"), (0.5, "fedavgm")])
def test_where_the_share_has_decayed_rounds_are_those_of_the_strategy_beneath(
    tiny, run_arm, monkeypatch, momentum, rival
):
    """A distillation that changes nothing, in the first round alone: FedAvg, or FedAvgM with its momentum."""
    monkeypatch.setattr(FedDF, "_distil", lambda strategy, server_round, average, states: (average, 7))
    kept, beneath = Kept(), Kept()
    changes = {**FEDDF, "server.momentum": momentum, "server.mix.decay": 0.0}
    one_by_one = {"server.cohort-size": 1}
    run_arm(tiny(**changes, **one_by_one), listeners=(kept,))
    server = {"strategy": rival} | ({"server-momentum": momentum} if momentum else {})
    run_arm(tiny(server=server, **one_by_one), listeners=(beneath,))
    assert [metrics.get(SERVER_STEPS) for metrics in kept.metrics[1:]] == [7, None, None]
    for a, b in zip(kept.states, beneath.states, strict=True):
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-7)


def test_a_distilled_share_moves_the_model_by_so_much_of_its_way(tiny, run_arm):
    """Half of it after one round: the model lies in the middle of the average and the distilled model."""
    found = {}
    for share in (0.5, 1.0):
        found[share] = run_arm(tiny(**FEDDF, **{"rounds.horizon": 1, "server.mix.start": share}))
    average = run_arm(tiny(**{"rounds.horizon": 1, "server.cohort-size": 1}))
    half, whole, none = (result.arrays.to_torch_state_dict() for result in (found[0.5], found[1.0], average))
    middle = average_states([whole, none], [1, 1])
    assert any(not torch.allclose(whole[key], none[key], atol=1e-4) for key in whole)
    for key in half:
        torch.testing.assert_close(half[key], middle[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server.when": "first", "server.mix.decay": 0.5}, "mix.decay: has no effect with when: first"),
        ({"server.mix.start": 0.005}, "mix.start"),
        ({"server.momentum": 1.0}, "momentum"),
    ],
)
def test_what_has_no_effect_is_refused(tiny, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**FEDDF, **changes)
