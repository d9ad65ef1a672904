"""A warm start for a Flower app, in a few words."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx
from torch import nn

from clients.teacher import teacher
from kdfed.data import Examples
from kdfed.distill import VanillaConsolidation
from kdfed.errors import ConfigError, DataError
from kdfed.listeners import Listener, Round
from kdfed.settings import ModelSettings
from simulations.engines.inprocess import InProcessGrid
from strategies.pre_consolidation import PreConsolidation

CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])


def examples(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return Examples(CENTRES[labels] + torch.randn(count, 2, generator=generator), labels)


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, width), nn.Linear(width, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(inputs)))  # type: ignore[no-any-return]


class NumbersNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.sum()


def builder(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Linear(*input_shape, classes)


def client_app(seen: list[Message] | None = None, steps: int | None = None) -> ClientApp:
    """Return an app without an evaluate handler."""
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        if seen is not None:
            seen.append(msg)
        torch.manual_seed(0)
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        own = examples(60, 10 + int(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=float(msg.content["config"]["lr"]))
        for start in range(0, 60, 10):
            optimizer.zero_grad()
            inputs, labels = own.inputs[start : start + 10], own.labels[start : start + 10]
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        told = {} if steps is None else {"local-steps": steps}
        metrics = MetricRecord({"loss": 1.0, "num-examples": 60, **told})
        arrays = ArrayRecord(model.state_dict())
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)

    app.train("teacher")(teacher(train))
    return app


def around(strategy: Any = None, **changes: Any) -> PreConsolidation:
    settings = {
        "model": Net,
        "participants": 3,
        "transfer": examples(150, 1),
        "teacher_epochs": 1,
        "consolidation": VanillaConsolidation(epochs=2),
    }
    return PreConsolidation.around(strategy or FedAvg(fraction_evaluate=0.0), **{**settings, **changes})


def start(strategy: PreConsolidation, app: ClientApp | None = None, **more: Any) -> Any:
    torch.manual_seed(0)
    settings = {"num_rounds": 1, "train_config": ConfigRecord({"lr": 0.1}), **more}
    return strategy.start(InProcessGrid(app or client_app(), 3), ArrayRecord(Net().state_dict()), **settings)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that tells what Flower's logger was told."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


# ----------------------------------------------------------------------------- what it runs


def test_the_student_starts_where_its_ensemble_is_and_a_cold_start_does_not() -> None:
    warm = start(around(teacher_epochs=5, consolidation=None))
    cold = start(around(start="random"))
    assert warm.consolidation.accuracy >= warm.consolidation.ensemble_accuracy - 0.03
    assert warm.records[0].accuracy > cold.records[0].accuracy + 0.2
    assert [record.exchanges for record in warm.records] == [1, 2]


def test_teachers_get_the_train_config_and_rounds_do_too() -> None:
    seen: list[Message] = []
    start(around(teacher_epochs=2), client_app(seen), train_config=ConfigRecord({"lr": 0.1, "note": "x"}))
    rounds = [msg.content["config"]["server-round"] for msg in seen]
    assert sorted(rounds) == [0] * 6 + [1] * 3
    assert {msg.content["config"]["note"] for msg in seen} == {"x"}


def test_fedprox_keeps_its_own_mu_and_teachers_have_none() -> None:
    seen: list[Message] = []
    start(around(FedProx(proximal_mu=0.5, fraction_evaluate=0.0), teacher_epochs=1), client_app(seen))
    assert [msg.content["config"]["proximal-mu"] for msg in seen] == [0.0] * 3 + [0.5] * 3


@pytest.mark.parametrize(("told", "counted"), [(None, [0, 0]), (6, [18, 36]), (60, [180, 360])])
def test_local_steps_are_counted_where_the_handler_tells_them(told: int | None, counted: list[int]) -> None:
    """At most one for each example: how large its batches are nobody says."""
    result = start(around(), client_app(steps=told))
    assert [record.local_steps for record in result.records] == counted
    assert [record.absent for record in result.records] == [(), ()]


def test_a_share_of_the_participants_can_be_sampled() -> None:
    result = start(around(FedAvg(fraction_evaluate=0.0), sampled=2))
    assert result.records[1].answered == 2


def test_listeners_are_told() -> None:
    class Kept(Listener):
        def __init__(self) -> None:
            self.rounds: list[Round] = []

        def on_round(self, ended: Round) -> None:
            self.rounds.append(ended)

    kept = Kept()
    start(around(listeners=(kept,)))
    assert [ended.number for ended in kept.rounds] == [0, 1]
    assert kept.rounds[0].consolidation is not None
    assert kept.rounds[1].consolidation is None


@pytest.mark.parametrize("strategy", [FedAvg(), FedAvg(fraction_evaluate=0.0)])
def test_without_an_evaluate_handler_the_run_goes_on(strategy: FedAvg, lines: Any) -> None:
    result = start(around(strategy, teacher_epochs=1), num_rounds=2)
    assert len(result.records) == 3
    assert result.evaluate_metrics_clientapp == {}
    told = [line for line in lines() if "evaluate 1: without participant" in line]
    assert len(told) == (1 if strategy.fraction_evaluate else 0)
    assert all("evaluate" in line.partition("participant")[2] for line in told)


# ----------------------------------------------------------------------------- what is logged


def test_a_run_is_logged_as_flower_logs_its_own(lines: Any) -> None:
    def evaluate_fn(number: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"score": 0.5 + number})

    start(around(), evaluate_fn=evaluate_fn)
    told = [line for line in lines() if line]
    for line in told:
        assert "\n" not in line
    text = "\n".join(told)
    order = [
        "Starting PreConsolidation strategy:",
        "\t├── Number of rounds: 1",
        "\t├── ConfigRecord (train): {'lr': 0.1}",
        "\t├──> Start: consolidated, around FedAvg",
        "\t│\t├── Participants: 3, sampled a round: all",
        "\t│\t└── Examples: 120 transfer, 30 validation",
        "\t├──> Sampling:",
        "[TEACHERS]",
        "[CONSOLIDATION]",
        "consolidate: 3 teachers into one student, 4 steps: accuracy ",
        "[ROUND 1/1]",
        "configure_train: Sampled 3 nodes (out of 3)",
        # while the participants train for the first round
        "Initial evaluation on validation examples: accuracy 0.",
        "Initial global evaluation results: {'score': 0.5}",
        "\t└──> Aggregated MetricRecord: {'loss': 1.0}",
        "\t└──> From 3 participants",
        "\t└──> Round 1, evaluation on validation examples: accuracy 0.",
        "\t└──> Round 1, global evaluation: {'score': 1.5}",
        "Strategy execution finished in ",
        "\t└──> 1 rounds, 2 exchanges, 6 uploads",
        "Final results:",
        "ServerApp-side Evaluate Metrics:",
    ]
    places = [text.find(line) for line in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_metrics_of_participants_are_logged(lines: Any) -> None:
    app = client_app()

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        metrics = MetricRecord({"eval_acc": 0.25, "num-examples": 10})
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    result = start(around(FedAvg(), teacher_epochs=1), app)
    assert "\t└──> Aggregated MetricRecord: {'eval_acc': 0.25}" in lines()
    assert dict(result.evaluate_metrics_clientapp[1]) == {"eval_acc": 0.25}


# ----------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    "model",
    [Net, f"{__name__}:Net", ModelSettings(name=f"{__name__}:Net", options={"width": 4}), builder],
)
def test_models_of_the_users_are_built(model: Any) -> None:
    config = around(model=model).config
    logits = config.build(config.arm.model, "init")(torch.zeros(5, 2))
    assert logits.shape == (5, 3)
    assert config.data.classes == 3


def test_a_model_has_more_outputs_than_there_are_labels() -> None:
    few = Examples(torch.randn(20, 2), torch.arange(20) % 2)
    assert around(transfer=few).config.data.classes == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": lambda: Net()}, "can be imported by its name.*define it at the top of a module"),
        (
            {"model": ModelSettings(backbone="a:b")},
            "a backbone reads images as they are stored",
        ),
        ({"model": f"{__name__}:nothing"}, "has no attribute 'nothing'"),
        ({"model": NumbersNet}, r"must map one input to logits of shape \(1, classes\), got \(\)"),
        ({"transfer": Examples(torch.zeros(20, 7), torch.arange(20) % 2)}, "mat1 and mat2"),
        ({"strategy": FedAvg(fraction_train=0.5)}, r"fraction_train.*set server\.sampled instead"),
        ({"strategy": FedAvg(min_available_nodes=4)}, "at most the 3 participants sampled, got 4"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_when_it_is_given(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){text}"):
        around(**changes)


# ----------------------------------------------------------------------------- data


def test_a_fifth_of_the_transfer_set_is_held_back_by_the_seed() -> None:
    data, again, other = (around(seed=seed).config.data for seed in (1, 1, 2))
    assert (len(data.transfer), len(data.validation)) == (120, 30)
    everything = torch.cat([data.transfer.inputs, data.validation.inputs])
    assert torch.equal(everything.sort(0).values, examples(150, 1).inputs.sort(0).values)
    assert torch.equal(data.validation.inputs, again.validation.inputs)
    assert not torch.equal(data.validation.inputs, other.validation.inputs)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"transfer": Examples(torch.zeros(20, 2), torch.full((20,), 3))}, "labels from 0 to 2.*got 3"),
        ({"transfer": Examples(torch.zeros(20, 2), torch.full((20,), -1))}, "labels from 0 to 2.*got -1"),
        ({"transfer": examples(4, 0)}, "at least 5 transfer examples, got 4"),
        ({"validation": Examples(torch.zeros(20, 3), torch.arange(20) % 2)}, r"of shape \(2,\).*got \(3,\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        around(**changes)


def test_keys_that_kdfed_would_replace_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train_config.*expected other keys than kdfed's own, got 'seed'"):
        start(around(), train_config=ConfigRecord({"lr": 0.1, "seed": 3}))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"strategy": FedAvg}, "strategy: expected a Flower strategy, got <class"),
        ({"participants": 0}, "participants"),
        ({"teacher_epochs": 1.5}, "epochs"),
        ({"sampled": 0}, "sampled"),
        ({"sampled": 4}, "sampled"),
        ({"start": "warm"}, "start"),
        ({"consolidation": "vanilla"}, "consolidation"),
        ({"targets": (90,)}, r"targets: expected a list of accuracies in \(0, 1\], got \(90,\)"),
        ({"targets": 0.9}, "targets: expected a list"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"listeners": (Listener,)}, "listeners: expected a list of kdfed.listeners.Listener objects"),
        ({"listeners": Listener()}, "listeners: expected a list"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_before_the_run(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        around(**wrong)
