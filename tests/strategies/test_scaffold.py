"""SCAFFOLD: against algorithm 1 spelt out, where it is FedAvg, what it costs, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clients.participants import simulated
from kdfed.data import Examples, prepare
from kdfed.errors import ConfigError
from kdfed.messages import Simulation
from kdfed.models import State, build_model, load_state, state_of
from kdfed.seeding import derive, shuffled

SCAFFOLD = {"server.strategy": "scaffold"}
BATCH_NORM = {"name": "cnn", "options": {"width": 4, "norm": "batch"}}


def states(run_arm: Any, experiment: Any, **config: Any) -> State:
    return dict(run_arm(experiment, **config).arrays.to_torch_state_dict())


def trained(model: torch.nn.Module, examples: Examples, local: Any, seed: int, pull: State) -> int:
    """Return the steps of plain SGD, whose gradients are moved by ``pull``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=local.lr, momentum=local.momentum)
    steps = 0
    for epoch in range(local.epochs):
        order = torch.from_numpy(shuffled([seed], epoch, [len(examples)])[0])
        for index in order.split(local.batch_size):
            optimizer.zero_grad()
            logits = model(examples.inputs[index])
            torch.nn.functional.cross_entropy(logits, examples.labels[index]).backward()
            for name, parameter in model.named_parameters():
                parameter.grad += pull[name]
            optimizer.step()
            steps += 1
    return steps


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("cohort", [1, 3])
def test_rounds_are_those_of_the_algorithm_spelt_out(tiny, run_arm, momentum, cohort):
    """Line 12, option II, with its own c_i and c, and c + mean(c_i_new - c_i), which nobody sends here."""
    changes = {"partition.participants": 3, "server.cohort-size": cohort, "local.momentum": momentum}
    experiment = tiny(**SCAFFOLD, **changes, **{"local.lr": 0.05, "rounds.horizon": 3})
    local = experiment.local
    data = prepare(experiment.data)
    people = simulated(Simulation.of(experiment.arm("cold"), 3))
    model = build_model(experiment.model, data.input_shape, data.classes, derive(3, "init"))
    x = state_of(model)
    zero = {key: torch.zeros_like(value) for key, value in x.items()}
    c, own = zero, [zero] * 3
    for number in (1, 2, 3):
        ends, moves, sizes = [], [], []
        for i in range(3):
            load_state(model, x)
            examples, _ = people.gather([i], experiment.model)
            pull = {key: c[key] - own[i][key] for key in c}
            steps = trained(model, examples, local, derive(3, "train", number, i), pull)
            y = state_of(model)
            k = sum((1 - momentum**j) / (1 - momentum) for j in range(1, steps + 1))
            new = {key: own[i][key] - c[key] + (x[key] - y[key]) / (local.lr * k) for key in x}
            moves.append({key: new[key] - own[i][key] for key in x})
            own[i] = new
            ends.append(y)
            sizes.append(len(examples))

        def mean(every: list[State], key: str, sizes: list[int] = sizes) -> torch.Tensor:
            return sum(one[key] * size for one, size in zip(every, sizes, strict=True)) / sum(sizes)

        x = {key: mean(ends, key) for key in x}
        c = {key: c[key] + mean(moves, key) for key in c}
    result = states(run_arm, experiment)
    for key, value in result.items():
        torch.testing.assert_close(value, x[key], rtol=1e-3, atol=1e-5)
    plain = states(run_arm, tiny(**changes, **{"local.lr": 0.05, "rounds.horizon": 3}))
    assert any(not torch.allclose(plain[key], x[key], atol=1e-3) for key in x), "it is not FedAvg"


@pytest.mark.parametrize("changes", [{"rounds.horizon": 1}, {"partition.participants": 1}])
def test_the_first_round_and_that_of_one_alone_are_fedavg(tiny, run_arm, changes):
    one_by_one = {"server.cohort-size": 1}
    a, b = (states(run_arm, tiny(**more, **changes, **one_by_one)) for more in (SCAFFOLD, {}))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6)


def test_it_costs_the_control_variate_on_the_way_down_and_nothing_on_the_way_up(tiny, run_arm):
    with_it, without = run_arm(tiny(**SCAFFOLD)), run_arm(tiny())
    state = with_it.arrays.to_torch_state_dict()
    numbers = sum(value.numel() * value.element_size() for value in state.values())
    for one, other in zip(with_it.records, without.records, strict=True):
        assert one.bytes_up == other.bytes_up
        assert one.exchanges == other.exchanges
        more = one.bytes_down - other.bytes_down
        sent = 5 * one.round
        assert sent * numbers <= more <= sent * (numbers + 1024)


def test_where_some_are_sampled_the_others_keep_theirs_and_c_moves_by_their_share(tiny, run_arm):
    experiment = tiny(**SCAFFOLD, **{"server.sampled": 2, "rounds.horizon": 6})
    a, b = states(run_arm, experiment), states(run_arm, experiment)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(bool(value.isfinite().all()) for value in a.values())


def test_buffers_have_no_control_variate(tiny, run_arm):
    result = run_arm(tiny(**SCAFFOLD, **{"model": BATCH_NORM, "rounds.horizon": 2}))
    state = result.arrays.to_torch_state_dict()
    assert all(bool((state[key] > 0).all()) for key in state if key.endswith("running_var"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local.optimizer": "adam", "local.lr": 0.01}, "local.optimizer: expected 'sgd' with strategy"),
        ({"local.mode": "mutual"}, "local.mode: expected a mode that trains the received model alone"),
        ({"local.trainable": "head"}, "local.trainable: expected 'all' with strategy 'scaffold'"),
    ],
)
def test_what_has_no_control_variate_is_refused(tiny, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**SCAFFOLD, **changes)
