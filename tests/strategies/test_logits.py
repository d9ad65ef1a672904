"""Strategies that exchange logits in every round: FedMD and DS-FL."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from clients.client_app import app
from kdfed.consensus import DIGESTS, entropy_reduction, mean_logits
from kdfed.data import Examples, prepare
from kdfed.errors import ConfigError
from kdfed.local import PLAIN, PlainLocal
from kdfed.messages import SIMULATION, QueryLogits
from kdfed.models import build_model, state_of
from kdfed.partition import partition_of
from kdfed.preflight import check_data
from kdfed.seeding import derive
from kdfed.train import fit, predict
from simulations.engines.inprocess import InProcessGrid
from simulations.experiments import build_experiment
from tests.conftest import TINY

STRONG = {"lr": 0.1, "momentum": 0.9, "epochs": 5}
LEARNING = {
    "server__digest": STRONG,
    "server__distillation": STRONG,
    "local__epochs": 3,
    "local__momentum": 0.9,
    "rounds__horizon": 8,
}
FAST = {"digest": {"lr": 0.05, "epochs": 2}, "distillation": {"lr": 0.05, "epochs": 2}}


def _states(result):
    return dict(result.arrays.to_torch_state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedmd", "ds_fl"])
def test_a_federated_run_learns_from_logits_alone(tiny, run_arm, strategy):
    records = run_arm(tiny(server__strategy=strategy, **LEARNING)).records
    assert max(record.accuracy for record in records) > records[0].accuracy + 0.3


@pytest.mark.parametrize("strategy", ["fedmd", "ds_fl"])
@pytest.mark.parametrize("changes", [{}, {"server.sampled": 2}, {"server.images": 20}])
def test_results_do_not_depend_on_the_number_of_nodes_or_the_order_of_replies(
    tiny, run_arm, strategy, changes
):
    experiment = tiny(server={"strategy": strategy, **FAST}, **changes)
    one, three = run_arm(experiment, nodes=1), run_arm(experiment, nodes=3, order=random.Random(1))
    assert all(torch.equal(value, _states(three)[key]) for key, value in _states(one).items())


@pytest.mark.parametrize("decay", [1.0, 0.25])
@pytest.mark.parametrize("strategy", ["fedmd", "ds_fl"])
def test_two_rounds_agree_with_the_slow_twin(tiny, run_arm, strategy, decay):
    """Everybody trained alone, logits combined and digested, spelt out."""
    experiment = tiny(
        server={"strategy": strategy, **FAST, "cohort-size": 1},
        rounds__horizon=2,
        partition__participants=3,
        local__decay=decay,
    )
    arm = experiment.arm("cold")
    data = prepare(arm.data)
    partition = partition_of(data, arm.partition, 3)
    public = data.examples(data.splits.transfer).inputs

    def model(state):
        made = build_model(arm.model, data.input_shape, data.classes, derive(3, "init"))
        made.load_state_dict(state)
        return made

    start = state_of(build_model(arm.model, data.input_shape, data.classes, derive(3, "init")))
    personal, server, consensus = [start] * 3, start, None
    for r in (1, 2):
        logits = []
        for p in range(3):
            own = model(personal[p])
            if consensus is not None:
                digested = Examples(public, consensus.float())
                fit(own, digested, arm.server.digest, DIGESTS[strategy], derive(3, "digest", r, p))
            local = PlainLocal(batch_size=8, lr=0.1 if r == 1 else 0.1 * decay)
            fit(own, data.examples(partition.indices[p]), local, PLAIN, derive(3, "train", r, p))
            personal[p] = state_of(own)
            logits.append(predict(own, public).half().float())
        every = torch.stack(logits)
        consensus = (mean_logits(every) if strategy == "fedmd" else entropy_reduction(every, 0.1)).half()
        global_model = model(server)
        target = Examples(public, consensus.float())
        fit(global_model, target, arm.server.distillation, DIGESTS[strategy], derive(3, "logits", r))
        server = state_of(global_model)

    result = _states(run_arm(experiment))
    assert all(torch.equal(value, result[key]) for key, value in server.items())


def test_public_examples_and_the_start_are_sent_once_and_the_consensus_from_the_second_round(tiny, run_arm):
    experiment = tiny(server={"strategy": "ds_fl", **FAST}, rounds__horizon=3)
    data = prepare(experiment.data)
    held = len(data.splits.transfer)
    model = build_model(experiment.model, data.input_shape, data.classes, 0)
    weights = sum(4 * value.numel() for value in model.state_dict().values())
    inputs = data.dataset.inputs[data.splits.transfer].nbytes

    records = run_arm(experiment).records

    down = [b.bytes_down - a.bytes_down for a, b in itertools.pairwise(records)]
    up = [b.bytes_up - a.bytes_up for a, b in itertools.pairwise(records)]
    people, logits = experiment.partition.participants, 2 * held * data.classes
    assert people * (inputs + weights) <= down[0] <= people * (inputs + weights + 4000)
    assert people * logits <= down[1] <= people * (logits + 4000)
    assert down[2] == down[1]
    assert people * logits <= up[0] <= people * (logits + 1000)
    assert len(set(up)) == 1


@pytest.mark.slow
def test_participants_may_have_their_own_architectures(tiny, run_arm):
    models = [{"name": "mlp", "options": {"hidden": [16]}}, {"name": "mlp", "options": {"hidden": [8, 8]}}]
    experiment = tiny(server__strategy="fedmd", server__models=models, **LEARNING)
    records = run_arm(experiment, nodes=3).records
    assert all(record.answered == 5 for record in records[1:])
    assert max(record.accuracy for record in records) > records[0].accuracy + 0.2


class _Listening(InProcessGrid):
    """Keeps the weights that participants are sent."""

    def __init__(self) -> None:
        super().__init__(app, 1)
        self.heard = []

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == QueryLogits.type:
                self.heard += [
                    r.to_torch_state_dict()
                    for k, r in message.content.array_records.items()
                    if k.startswith("arrays")
                ]
        return super().push_messages(messages)


def test_a_consolidated_start_is_where_participants_begin(tiny, run_arm):
    experiment = tiny(server={"strategy": "ds_fl", **FAST}, rounds__horizon=2)
    start = _states(run_arm(tiny(rounds__horizon=0), "consolidated"))
    grid = _Listening()
    run_arm(experiment, "consolidated", grid=grid)
    (sent,) = grid.heard
    assert all(torch.equal(value, sent[key]) for key, value in start.items())


def test_who_is_sampled_late_begins_where_everybody_began(tiny, run_arm):
    experiment = tiny(server={"strategy": "fedmd", **FAST, "sampled": 2}, rounds__horizon=6)
    start = _states(run_arm(tiny(rounds__horizon=0)))
    grid = _Listening()
    run_arm(experiment, grid=grid)
    assert len(grid.heard) > 1, "somebody was sampled late"
    for sent in grid.heard:
        assert all(torch.equal(value, sent[key]) for key, value in start.items())


class _Lossy(InProcessGrid):
    """Loses what a participant kept: another store with every message."""

    def push_messages(self, messages):
        messages = list(messages)
        for count, message in enumerate(messages):
            record = message.content.config_records.get(SIMULATION)
            if record is not None and message.metadata.message_type == QueryLogits.type:
                record["store"] = f"{record['store']}-{id(message)}-{count}"
        return super().push_messages(messages)


def test_participants_that_lost_the_public_examples_are_left_out_and_named(tiny, run_arm):
    experiment = tiny(server={"strategy": "fedmd", **FAST}, rounds__horizon=2)
    with pytest.raises(Exception, match="expected the public examples of an earlier message"):
        run_arm(experiment, grid=_Lossy(app, 1))


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"local": {"mode": "kd"}}, "local.mode", "receive no model"),
        (
            {"server": {"strategy": "fedmd", "digest": {"optimizer": "adam", "momentum": 0.9}}},
            "digest.momentum",
            "0",
        ),
        ({"server": {"strategy": "fedmd", "models": {"name": "cnm"}}}, "server.models", "cnn"),
        ({"server": {"strategy": "fedmd", "temperature": 0.1}}, "server.temperature", "unknown"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, key, text):
    values = {**TINY, "server": {"strategy": "ds_fl"}, **changes}
    with pytest.raises(ConfigError) as caught:
        build_experiment(values)
    assert any(key in mistake.key and text in mistake.message for mistake in caught.value.mistakes), (
        caught.value
    )


def test_more_public_examples_than_there_are_is_refused_before_anything_starts(tiny):
    (mistake,) = check_data(tiny(server={"strategy": "ds_fl", "images": 5000}))
    assert mistake.key == "server.images"
    assert "transfer split" in mistake.message
