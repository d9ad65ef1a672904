"""Every strategy that an experiment can name, and the wrapper around any other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx

from clients.participants import simulated
from kdfed.arrays import spec_of
from kdfed.config import server_labels
from kdfed.data import Examples, prepare
from kdfed.errors import ConfigError, KdfedError
from kdfed.local import LOCAL_MODES, PLAIN
from kdfed.messages import Simulation
from kdfed.models import build_model, load_state, state_of
from kdfed.seeding import derive
from kdfed.server import GivenStrategy
from kdfed.settings import OptimiserSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import fit
from simulations.engines.inprocess import InProcessGrid
from simulations.server_app import held_out_data, server_data
from strategies.arm_config import ArmConfig
from strategies.catalogue import STRATEGIES, make_strategy
from strategies.fedavg import FedAvgServer

BATCH_NORM = {"name": "cnn", "options": {"width": 4, "norm": "batch"}}


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_strategy_is_a_file_of_its_name(name):
    kind = STRATEGIES.find(name)
    assert kind.__module__ == f"strategies.{name}"
    assert kind().strategy == name


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_models_with_batch_norm_go_through_every_strategy(tiny, run_arm, name):
    changes: dict[str, Any] = {"server.strategy": name, "model": BATCH_NORM, "rounds.horizon": 2}
    if name == "fedprox":
        changes |= {"local.mode": "proximal", "local.mu": 0.1}
    experiment = tiny(**changes)
    result = run_arm(experiment)
    state = result.arrays.to_torch_state_dict()
    data = prepare(experiment.data)
    model = build_model(experiment.model, data.input_shape, data.classes, seed=0)
    assert spec_of(state) == spec_of(state_of(model)), "dtypes and shapes of the initial model"
    variances = [value for key, value in state.items() if key.endswith("running_var")]
    assert variances
    assert all(bool((value > 0).all()) for value in variances)
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert len(result.records) == 3


def test_mu_of_zero_is_fedavg(tiny, run_arm):
    prox = tiny(**{"server.strategy": "fedprox", "local.mode": "proximal", "local.mu": 0.0})
    plain = tiny()
    a, b = (run_arm(e).arrays.to_torch_state_dict() for e in (prox, plain))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_mu_pulls_towards_the_received_model(tiny, run_arm):
    def moved(mu: float) -> float:
        experiment = tiny(
            **{"rounds.horizon": 1, "server.strategy": "fedprox", "local.mode": "proximal", "local.mu": mu}
        )
        before = run_arm(
            experiment.model_copy(update={"rounds": experiment.rounds.model_copy(update={"horizon": 0})})
        )
        after = run_arm(experiment).arrays.to_torch_state_dict()
        return sum(float((after[k] - v).norm()) for k, v in before.arrays.to_torch_state_dict().items())

    assert moved(5.0) < moved(0.0)


def test_one_participant_is_local_training(tiny, run_arm):
    """FedAvg over one participant returns what that participant trained, to the bit."""
    experiment = tiny(**{"partition.participants": 1, "rounds.horizon": 1})
    simulation = Simulation.of(experiment.arm("cold"), 3)
    participants = simulated(simulation)
    data = prepare(experiment.data)
    model = build_model(experiment.model, data.input_shape, data.classes, derive(3, "init"))
    examples, _ = participants.gather([0], experiment.model)
    loss = experiment.local.loss(lambda: model, CLASSIFICATION)
    fit(model, examples, experiment.local, loss, derive(3, "train", 1, 0))
    result = run_arm(experiment).arrays.to_torch_state_dict()
    assert all(torch.equal(value, result[key]) for key, value in state_of(model).items())


@pytest.mark.parametrize(("participants", "cohort"), [(1, 1), (3, 1), (3, 3)])
def test_rounds_with_decay_and_extra_passes_are_rounds_by_hand(tiny, run_arm, participants, cohort):
    """FedAvg spelt out, each round with its own rate and passes: 0.2 and 3 passes, then 0.05 and one."""
    experiment = tiny(
        **{
            "partition.participants": participants,
            "server.cohort-size": cohort,
            "rounds.horizon": 2,
            "local": {"lr": 0.2, "decay": 0.25, "batch-size": 8, "extra": {"epochs": 2, "rounds": 1}},
        }
    )
    data = prepare(experiment.data)
    people = simulated(Simulation.of(experiment.arm("cold"), 3))
    model = build_model(experiment.model, data.input_shape, data.classes, derive(3, "init"))
    state = state_of(model)
    for number, lr, epochs in ((1, 0.2, 3), (2, 0.05, 1)):
        trained, sizes = [], []
        for participant in range(participants):
            load_state(model, state)
            examples, _ = people.gather([participant], experiment.model)
            local = OptimiserSettings(lr=lr, epochs=epochs, batch_size=8)
            fit(model, examples, local, PLAIN, derive(3, "train", number, participant))
            trained.append(state_of(model))
            sizes.append(len(examples))
        state = {
            key: sum(one[key].double() * size for one, size in zip(trained, sizes, strict=True)) / sum(sizes)
            for key in state
        }
        state = {key: value.float() for key, value in state.items()}
    result = run_arm(experiment)
    assert [record.answered for record in result.records] == [0, participants, participants]
    for key, value in result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0 if participants == 1 else 1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["mutual", "kd"])
def test_a_first_round_alone_with_extra_passes_is_one_with_so_many(tiny, run_arm, mode):
    extra = tiny(**{"local": {"mode": mode, "extra": {"epochs": 2, "rounds": 1}}, "rounds.horizon": 1})
    more = tiny(**{"local": {"mode": mode, "epochs": 3}, "rounds.horizon": 1})
    a, b = (run_arm(e).arrays.to_torch_state_dict() for e in (extra, more))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("mode", sorted(LOCAL_MODES))
def test_every_local_mode_learns(tiny, run_arm, mode):
    changes = {"proximal": {"local.mu": 0.01}, "kd": {"local.weight": 0.3}}.get(mode, {})
    records = run_arm(tiny(**{"local.mode": mode, "rounds.horizon": 5, **changes})).records
    assert records[-1].accuracy > records[0].accuracy + 0.2


def test_kd_with_weight_zero_is_plain(tiny, run_arm):
    kd = tiny(**{"local.mode": "kd", "local.weight": 0.0})
    a, b = (run_arm(e).arrays.to_torch_state_dict() for e in (kd, tiny()))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_starts_differ_only_in_the_start(tiny, run_arm):
    longer = {"rounds.horizon": 0, "teachers.epochs": 10, "consolidation.epochs": 20}
    experiment = tiny(arms={s: {"start": s} for s in ("random", "consolidated", "averaged")}, **longer)
    starts = {name: run_arm(experiment, name).records[0] for name in experiment.arms}
    assert starts["consolidated"].accuracy > starts["random"].accuracy
    assert starts["random"].exchanges == 0
    assert starts["averaged"].exchanges == starts["consolidated"].exchanges == 1


def test_a_model_file_can_be_the_start(tiny, run_arm, tmp_path):
    from safetensors.torch import save_file

    trained = run_arm(tiny()).arrays.to_torch_state_dict()
    path = tmp_path / "model.safetensors"
    save_file(dict(trained), path)
    again = tiny(arms={"warm": {"start": f"file:{path}"}}, **{"rounds.horizon": 0})
    warm = run_arm(again, "warm").arrays.to_torch_state_dict()
    assert all(torch.equal(trained[key], warm[key]) for key in trained)


STOP_AT_TARGET = {"rounds.stop-at-target": True, "targets": [0.99], "rounds.horizon": 12}


def test_a_single_arm_stops_at_its_targets_if_it_is_asked_to(tiny, run_arm):
    stopped = run_arm(tiny(only="cold", **STOP_AT_TARGET), targets=(0.3,))
    assert stopped.stopped == "target"
    assert len(stopped.records) < 13
    everything = run_arm(tiny(**{"rounds.horizon": 12}), targets=(0.3,))
    assert everything.stopped == "horizon"
    assert len(everything.records) == 13


def test_an_arm_that_is_compared_runs_to_the_horizon_whatever_would_stop_it(tiny, run_arm):
    stops = {**STOP_AT_TARGET, "rounds.plateau": {"rounds": 1, "min-delta": 0.9, "stop": True}}
    result = run_arm(tiny(only="cold", **stops), targets=(0.01,), never_stop=True)
    assert result.stopped == "horizon"
    assert len(result.records) == 13


def test_an_arm_stops_on_a_plateau(tiny, run_arm):
    """Nothing changes: the first mean of five is that of round 4, and round 7 is 7 // 2 rounds later."""
    flat = {
        "rounds.horizon": 9,
        "local.lr": 1e-9,
        "rounds.plateau": {"rounds": 2, "min-delta": 0.1, "stop": True},
    }
    result = run_arm(tiny(only="cold", **flat))
    assert result.stopped == "plateau"
    assert len(result.records) == 8


# ----------------------------------------------------------------------------- other people's apps


def _their_app(calls: list[str]) -> ClientApp:
    """Return a ClientApp that knows nothing of kdfed but its teacher message: a linear model on two blobs."""
    app = ClientApp()

    def fit(message: Any, context: Any, steps: int) -> Any:
        calls.append(message.metadata.message_type)
        weights = message.content["arrays"].to_torch_state_dict()
        generator = torch.Generator().manual_seed(context.node_id)
        labels = torch.randint(0, 2, (40,), generator=generator)
        inputs = torch.randn(40, 2, generator=generator) * 0.3 + labels[:, None] * 2.0
        model = _linear()
        load_state(model, weights)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimiser.step()
        reply = RecordDict(
            {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 40})}
        )
        from flwr.app import Message

        return Message(reply, reply_to=message)

    app.train()(lambda message, context: fit(message, context, 1))
    app.train("teacher")(lambda message, context: fit(message, context, 50))

    @app.evaluate()
    def evaluate(message: Any, context: Any) -> Any:
        from flwr.app import Message

        calls.append("evaluate")
        reply = RecordDict({"metrics": MetricRecord({"num-examples": 40, "eval-acc": 0.5})})
        return Message(reply, reply_to=message)

    return app


def _linear() -> torch.nn.Module:
    from kdfed.settings import ModelSettings

    return build_model(ModelSettings(name="mlp", options={"hidden": (4,)}), (2,), 2, seed=1)


def test_it_works_in_a_stock_server_app_with_somebody_elses_client_app():
    from kdfed.config import Arm
    from kdfed.data import Examples
    from kdfed.distill import VanillaConsolidation
    from kdfed.partitions import UniformPartition
    from kdfed.settings import ModelSettings
    from strategies.arm_config import ArmConfig, ServerData
    from strategies.pre_consolidation import PreConsolidation

    labels = torch.arange(60) % 2
    inputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + labels[:, None] * 2.0
    examples = Examples(inputs, labels)
    arm = Arm(
        start="consolidated",
        device="cpu",
        model=ModelSettings(name="mlp", options={"hidden": (4,)}),
        partition=UniformPartition(kind="uniform", participants=3),
        consolidation=VanillaConsolidation(epochs=20, batch_size=6),
    )
    data = ServerData(examples, examples, inputs.numpy(), 2, CLASSIFICATION)
    calls: list[str] = []
    strategy = PreConsolidation(FedAvg(), ArmConfig(arm=arm, data=data))
    seen = []
    result = strategy.start(
        InProcessGrid(_their_app(calls), 3),
        ArrayRecord(_linear().state_dict()),
        num_rounds=2,
        evaluate_fn=lambda r, arrays: seen.append(r),
    )
    assert calls.count("train.teacher") == 3
    assert calls.count("train") == 6
    assert calls.count("evaluate") == 6
    assert seen == [0, 1, 2]
    assert result.records[0].accuracy > 0.9
    assert result.evaluate_metrics_clientapp[1]["eval-acc"] == 0.5
    assert result.records[-1].exchanges == 3, "evaluation trips are counted apart"


def test_a_strategy_that_would_sample_or_wait_for_ever_is_refused(tiny, run_arm):
    with pytest.raises(ConfigError, match=r"fraction_train: expected 1.0, got 0.5; set server.sampled"):
        run_arm(tiny(), strategy=FedAvg(fraction_train=0.5))
    with pytest.raises(ConfigError, match="min_available_nodes: expected at most the 5 participants"):
        run_arm(tiny(), strategy=FedAvg(min_available_nodes=6))
    with pytest.raises(ConfigError, match=r"proximal_mu: expected arm\.local of mode 'proximal'"):
        run_arm(tiny(), strategy=FedProx(proximal_mu=0.1))


DISTILLED = {"server.strategy": "feddf", "server.distillation.epochs": 2}


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        ({"server.strategy": "fedavg"}, set()),
        ({"server.strategy": "fedmd"}, set()),
        ({"server.strategy": "ds_fl"}, set()),
        (DISTILLED, set()),
        ({**DISTILLED, "server.distillation.ensemble": "validated"}, {"validation"}),
        ({**DISTILLED, "server.distillation.select": "best", "server.distillation.lr": 0.05}, {"validation"}),
        (
            {**DISTILLED, "server.distillation.labels": True, "server.distillation.weight": 0.5},
            {"transfer"},
        ),
    ],
)
def test_a_strategy_learns_from_no_other_labels_than_it_says(tiny, run_arm, changes, used):
    experiment = tiny(**changes, **{"rounds.horizon": 1})
    assert experiment.arm("cold").server.server_labels() == used
    data = server_data(prepare(experiment.data))

    def trained(**poisoned):
        result = run_arm(experiment, data=replace(data, **poisoned))
        return result.arrays.to_torch_state_dict()

    honest = trained()
    for split in ("validation", "transfer"):
        examples = getattr(data, split)
        other = trained(**{split: Examples(examples.inputs, (examples.labels + 1) % 10)})
        same = all(torch.equal(honest[key], other[key]) for key in honest)
        assert same == (split not in used)


@pytest.mark.parametrize("declared", [None, True, False])
def test_a_strategy_that_says_it_uses_no_labels_is_shown_none(tiny, declared):
    class Looking(FedAvgServer):
        uses_server_labels: ClassVar[bool | None] = declared

        def build(self, config):
            seen.append(config)
            return super().build(config)

    seen: list[ArmConfig] = []
    experiment = tiny()
    prepared = prepare(experiment.data)
    data, arm = server_data(prepared), experiment.arm("cold").model_copy(update={"server": Looking()})
    make_strategy(ArmConfig(arm=arm, data=data, held_out=held_out_data(prepared)))
    shown = seen[0].data
    for ours, theirs in ((data.validation, shown.validation), (data.transfer, shown.transfer)):
        assert torch.equal(ours.inputs, theirs.inputs)
        hidden = bool((theirs.labels == -100).all())
        assert hidden == (declared is False)
        assert hidden or torch.equal(ours.labels, theirs.labels)
    assert seen[0].held_out is None, "what rounds are counted on is nobody's"
    assert server_labels(arm, 20, 40) == (0 if declared is False else 60)


def test_a_student_that_is_not_well_is_said_in_the_log(tiny, run_arm, caplog):
    experiment = tiny(**{"consolidation.lr": 50.0, "consolidation.temperature": 1.0, "rounds.horizon": 0})
    with caplog.at_level("WARNING", "kdfed.strategies"):
        result = run_arm(experiment, "consolidated")
    assert result.consolidation.warning
    assert f"consolidated, seed 3: {result.consolidation.warning}" in caplog.messages


def test_what_builds_no_strategy_is_refused(tiny):

    class Nothing(GivenStrategy):
        def build(self, config):
            return "fedavg"

    arm, data = tiny().arm("cold"), server_data(prepare(tiny().data))
    for server, told in (
        (GivenStrategy(), "expected server settings that name a strategy"),
        (Nothing(), r"server\.strategy 'given': expected build to return a Strategy of .*, got 'fedavg'"),
    ):
        config = ArmConfig(arm=arm.model_copy(update={"server": server}), data=data)
        with pytest.raises(KdfedError, match=told):
            make_strategy(config)
