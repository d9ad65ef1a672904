"""What a task is, and what a regression can be asked for."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdfed.consolidate import consolidate
from kdfed.data import Examples
from kdfed.distill import (
    MutualConsolidation,
    PartitionedConsolidation,
    TunedConsolidation,
    VanillaConsolidation,
)
from kdfed.ensembles import MeanLogits, Validated
from kdfed.errors import ConfigError, KdfedError
from kdfed.local import PLAIN, KDLocal, MutualLocal, NTDLocal, PlainLocal, ProximalLocal, plain_loss
from kdfed.models import state_of
from kdfed.models.mlp import MLP
from kdfed.settings import OptimiserSettings
from kdfed.task import CLASSIFICATION, REGRESSION, WORST
from kdfed.train import evaluate, fit
from simulations.experiments import FAMILIES, build_experiment, merge
from tests.setups import CPU_REGRESSION

FILE: dict[str, Any] = {
    "name": "numbers",
    "data": {"task": "regression", "source": "diabetes"},
    "model": {"name": "mlp"},
    "consolidation": {"ensemble": "mean-logits", "temperature": 1.0},
    "arms": {"cold": {"start": "random"}, "consolidated": {"start": "consolidated"}},
}


ALLOWED = {
    "local.mode": {"plain", "proximal", "kd", "mutual"},
    "consolidation.method": {"vanilla", "tuned", "mutual"},
    "consolidation.transfer": {"public", "noise", "proxy", "own", "teacher", "union"},
    "consolidation.ensemble": {"mean-logits"},
    "closed-form.head": {"ridge"},
    "partition.kind": {
        *("uniform", "quantity-skew", "label-overlap", "k-classes", "dirichlet"),
        *("column", "devices"),
    },
    "server.strategy": {
        *("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "scaffold", "feddf"),
        *("fedmedian", "fedtrimmedavg", "krum"),
    },
}
"""What a regression can have."""


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def examples(count: int = 60, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return Examples(inputs, inputs @ torch.tensor([1.0, -0.5, 0.25, 0.0]) + 0.1 * inputs[:, 0] ** 2)


def network(seed: int) -> MLP:
    torch.manual_seed(seed)
    return MLP((4,), 1, hidden=(6,))


# ----------------------------------------------------------------------------- worked numbers


def test_r2_is_a_worked_number() -> None:
    """Labels 1, 2, 3, 6 have mean 3 and squares 4 + 1 + 0 + 9 = 14; errors 1, 0, 1, 2 have 6: 1 - 6 / 14."""
    outputs, labels = column(2, 2, 2, 4), torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert REGRESSION.score(outputs, labels) == pytest.approx(1 - 6 / 14)
    assert REGRESSION.loss(outputs, labels) == pytest.approx(6 / 4)


def test_the_mean_of_the_labels_scores_0_and_an_exact_output_1() -> None:
    labels = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert REGRESSION.score(column(3, 3, 3, 3), labels) == pytest.approx(0)
    assert REGRESSION.score(labels.unsqueeze(1), labels) == 1


def test_the_soft_loss_is_a_worked_number() -> None:
    """Output 1, label 3, teachers 0 and 1 with mean 1/2: 0.25 * 4 + 0.75 * 0.25 = 1.1875."""
    target = REGRESSION.target(MeanLogits(), torch.tensor([[[0.0]], [[1.0]]]), 1.0, None)
    assert target.tolist() == [[0.5]]
    loss = REGRESSION.soft_losses(column(1), target, torch.tensor([3.0]), 1.0, 0.75)
    assert loss.tolist() == [1.1875]
    assert REGRESSION.soft_losses(column(1), target, None, 1.0, 1.0).tolist() == [0.25]


def test_peers_are_a_worked_number() -> None:
    """Outputs 0, 1, 3, label 1. The first: 1 + (1 + 9) / 2 = 6, then 0 + (1 + 4) / 2, and 4 + (9 + 4) / 2."""
    losses = REGRESSION.peer_losses([column(0), column(1), column(3)], torch.tensor([1.0]))
    assert [float(loss) for loss in losses] == [6.0, 2.5, 10.5]


def test_two_models_that_teach_each_other_on_a_participant_are_a_worked_number() -> None:
    """Received 1, personal 3, label 0: 0.75 * 1 + 0.25 * 4 = 1.75, and 0.5 * 9 + 0.5 * 4 = 6.5."""
    loss = MutualLocal(alpha=0.5, beta=0.75).loss(lambda: network(0), REGRESSION)
    outputs = torch.tensor([[1.0, 3.0]])
    assert loss.examples(outputs, outputs, torch.tensor([0.0])).tolist() == [8.25]


# ----------------------------------------------------------------------------- laws


def test_matching_the_teacher_exactly_costs_nothing() -> None:
    outputs = column(-1, 0, 2)
    target = REGRESSION.target(MeanLogits(), outputs.unsqueeze(0), 1.0, None)
    assert REGRESSION.soft_losses(outputs, target, None, 1.0, 1.0).tolist() == [0, 0, 0]
    assert [float(loss) for loss in REGRESSION.peer_losses([outputs, outputs], None)] == [0, 0]


def test_weight_0_is_plain_training() -> None:
    data, settings = examples(), KDLocal(weight=0.0, temperature=1.0)
    received = network(1)
    trained = []
    for loss in (settings.loss(lambda: received, REGRESSION), plain_loss(REGRESSION)):
        model = copy.deepcopy(received)
        fit(model, data, settings, loss, seed=3)
        trained.append(state_of(model))
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])
    outputs, target, labels = torch.randn(5, 1), torch.randn(5, 1), torch.randn(5)
    assert torch.equal(
        REGRESSION.soft_losses(outputs, target, labels, 1.0, 0.0), REGRESSION.losses(outputs, labels)
    )


def test_no_gradient_flows_into_teachers_and_peers() -> None:
    own, other = column(1).requires_grad_(), column(3).requires_grad_()
    REGRESSION.soft_losses(own, other, None, 1.0, 1.0).sum().backward()
    REGRESSION.peer_losses([own, other], None)[0].backward()
    assert other.grad is None
    assert own.grad is not None


def test_r2_does_not_depend_on_the_scale_of_the_label() -> None:
    outputs, labels = torch.randn(50, 1).double(), torch.randn(50).double()
    scaled = REGRESSION.score(40 * outputs + 7, 40 * labels + 7)
    assert scaled == pytest.approx(REGRESSION.score(outputs, labels))


def test_every_score_is_a_number() -> None:
    labels = torch.tensor([1.0, 2.0])
    for broken in (float("nan"), float("inf"), 1e30):
        assert REGRESSION.score(column(broken, broken), labels) == WORST
    same = torch.tensor([2.0, 2.0])
    assert REGRESSION.score(column(2, 2), same) == 1
    assert REGRESSION.score(column(3, 3), same) == 0


def test_classification_is_what_it_was() -> None:
    logits, labels = torch.randn(20, 3), torch.randint(3, (20,))
    assert plain_loss(CLASSIFICATION) is PLAIN
    assert CLASSIFICATION.loss(logits, labels) == float(functional.cross_entropy(logits, labels))
    assert CLASSIFICATION.score(logits, labels) == int((logits.argmax(1) == labels).sum()) / 20


# ----------------------------------------------------------------------------- the slow twin


def test_r2_agrees_with_scikit_learn_and_a_loop() -> None:
    from sklearn.metrics import r2_score

    outputs, labels = torch.randn(80, 1), torch.randn(80)
    mean = sum(float(label) for label in labels) / 80
    wrong = sum((float(output) - float(label)) ** 2 for output, label in zip(outputs, labels, strict=True))
    around = sum((float(label) - mean) ** 2 for label in labels)
    score = REGRESSION.score(outputs, labels)
    assert score == pytest.approx(1 - wrong / around)
    assert score == pytest.approx(r2_score(labels.numpy(), outputs.numpy()))


def test_consolidation_agrees_with_a_loop_over_batches_and_examples() -> None:
    """SGD in full batches: gradient of the mean of 0.4 (s - y)^2 + 0.6 (s - mean of teachers)^2."""
    transfer, validation = examples(12, seed=1), examples(20, seed=2)
    teachers = [network(seed) for seed in (5, 6)]
    student, twin = network(7), network(7)
    settings = VanillaConsolidation(
        ensemble="mean-logits", temperature=1.0, weight=0.6, labels=True, epochs=3, batch_size=12, lr=0.1
    )
    result = consolidate(student, teachers, transfer, validation, settings, seed=0, setup=CPU_REGRESSION)
    for _ in range(3):
        loss = torch.tensor(0.0)
        for place in range(12):
            one = transfer.inputs[place : place + 1]
            wanted = sum(float(teacher(one).detach()) for teacher in teachers) / 2
            own = twin(one)[0, 0]
            loss = loss + (0.4 * (own - transfer.labels[place]) ** 2 + 0.6 * (own - wanted) ** 2) / 12
        twin.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    for one, two in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    assert result.accuracy == evaluate(student, validation, REGRESSION)[0]


# ----------------------------------------------------------------------------- every method learns


@pytest.mark.parametrize(
    "settings",
    [
        VanillaConsolidation(ensemble="mean-logits", temperature=1.0, epochs=30, batch_size=8),
        TunedConsolidation(
            method="tuned", ensemble="mean-logits", temperatures=(1.0,), weights=(0.3, 1.0), labels=True,
            epochs=30, batch_size=8, select="best",
        ),
        MutualConsolidation(method="mutual", epochs=30, batch_size=8),
    ],
    ids=lambda settings: settings.method,
)  # fmt: skip
def test_a_student_learns_a_number_from_teachers(settings: Any) -> None:
    transfer, validation = examples(60, seed=1), examples(80, seed=2)
    teachers = [network(seed) for seed in (5, 6)]
    for teacher in teachers:
        fit(teacher, examples(80, seed=3), OptimiserSettings(epochs=40, lr=0.02), plain_loss(REGRESSION), 0)
    student = network(7)
    before, _ = evaluate(student, validation, REGRESSION)
    result = consolidate(student, teachers, transfer, validation, settings, seed=0, setup=CPU_REGRESSION)
    assert before < 0.5 < result.accuracy == evaluate(student, validation, REGRESSION)[0]
    if settings.method != "mutual":
        assert result.ensemble_accuracy is not None
        assert result.ensemble_accuracy > 0.8


# ----------------------------------------------------------------------------- refusals


def test_what_needs_classes_is_refused() -> None:
    outputs = torch.zeros(2, 3, 1)
    with pytest.raises(KdfedError, match=r"'validated' needs classes.*use mean-logits"):
        REGRESSION.target(Validated(), outputs, 1.0, None)
    with pytest.raises(KdfedError, match=r"temperature 1 in a regression.*got 3"):
        REGRESSION.target(MeanLogits(), outputs, 3.0, None)
    with pytest.raises(KdfedError, match=r"temperature 1 in a regression.*got 2"):
        REGRESSION.soft_losses(outputs[0], outputs[0], None, 2.0, 1.0)
    with pytest.raises(KdfedError, match=r"'ntd' needs classes.*use plain, proximal or kd"):
        NTDLocal().loss(lambda: network(0), REGRESSION)
    with pytest.raises(KdfedError, match=r"'partitioned' asks which model is surest"):
        consolidate(
            network(0),
            [network(1)],
            examples(4),
            examples(4),
            PartitionedConsolidation(method="partitioned"),
            seed=0,
            setup=CPU_REGRESSION,
        )


def mistakes(**changes: Any) -> dict[str, str]:
    """Build the file with whole sections, or single keys (dotted names), replaced."""
    sections = {key: value for key, value in changes.items() if "." not in key}
    keys = {key: value for key, value in changes.items() if "." in key}
    try:
        build_experiment(merge({**FILE, **sections}, keys))
    except ConfigError as error:
        return {mistake.key: mistake.message for mistake in error.mistakes}
    return {}


def test_the_file_of_these_tests_is_valid() -> None:
    assert mistakes() == {}


def test_every_thing_says_whether_a_regression_can_have_it() -> None:
    assert {family.key for family in FAMILIES} == set(ALLOWED)
    for family in FAMILIES:
        allowed = {name for name, kind in family.members.items() if not kind.needs_classes}
        assert allowed == ALLOWED[family.key], family.key


@pytest.mark.parametrize("mode", sorted(FAMILIES["local.mode"].members))
def test_every_local_mode_is_known_to_go_with_a_regression_or_not(mode: str) -> None:
    own = {"proximal": {"mu": 0.1}, "kd": {"temperature": 1.0}}.get(mode, {})
    found = mistakes(local={"mode": mode, **own})
    assert ("local.mode" in found) == (mode not in ALLOWED["local.mode"])
    assert set(found) <= {"local.mode"}


@pytest.mark.parametrize("method", sorted(FAMILIES["consolidation.method"].members))
def test_every_method_is_known_to_go_with_a_regression_or_not(method: str) -> None:
    own = {
        "vanilla": {"ensemble": "mean-logits", "temperature": 1.0},
        "tuned": {"ensemble": "mean-logits", "temperatures": [1.0]},
    }.get(method, {})
    found = mistakes(consolidation={"method": method, **own})
    assert any(key.endswith("consolidation.method") for key in found) == (
        method not in ALLOWED["consolidation.method"]
    )
    assert len(found) == (method not in ALLOWED["consolidation.method"])


@pytest.mark.parametrize("strategy", sorted(FAMILIES["server.strategy"].members))
def test_every_strategy_is_known_to_go_with_a_regression_or_not(strategy: str) -> None:
    local = {"mode": "proximal", "mu": 0.1} if strategy == "fedprox" else {"mode": "plain"}
    found = mistakes(local=local, server={"strategy": strategy})
    assert ("server.strategy" in found) == (strategy not in ALLOWED["server.strategy"])
    assert set(found) <= {"server.strategy"}


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        (
            {"consolidation": {"temperature": 1.0}},
            "consolidation.ensemble",
            "expected mean-logits .*'mean-pro",
        ),
        (
            {"consolidation": {"ensemble": "mean-logits"}},
            "consolidation.temperature",
            "expected 1.0 .*got 3;",
        ),
        (
            {"consolidation": {"method": "tuned", "ensemble": "mean-logits"}},
            "consolidation.temperatures",
            r"expected \[1.0\] .*got \[1.0, 2.0, 3.0, 5.0, 10.0\]; set it",
        ),
        ({"consolidation": {"method": "partitioned"}}, "consolidation.method", "how sure a model is"),
        ({"local": {"mode": "kd"}}, "local.temperature", "expected 1.0 .*got 3"),
        ({"local": {"mode": "ntd"}}, "local.mode", "the classes that are not the label"),
        ({"data.classes": 3}, "data.classes", "has no effect"),
        ({"data.task": "classification"}, "data.task", "expected 'regression' with source 'diabetes'"),
        ({"data.source": "digits"}, "data.task", "expected 'classification' with source 'digits'"),
        ({"data.source": "folder:x"}, "data.task", "expected 'classification' with source 'folder:.*x'"),
        (
            {"server": {"strategy": "feddf", "distillation": {"temperature": 2.0}}},
            "server.distillation.temperature",
            "expected 1.0",
        ),
    ],
)
def test_what_a_regression_does_not_have_is_a_mistake(changes: Any, key: str, message: str) -> None:
    found = mistakes(**changes)
    (own,) = [name for name in found if name.endswith(key)]
    assert len(found) == 1, found
    assert re.search(message, found[own]), found[own]


# ----------------------------------------------------------------------------- federated


def regression(**changes: Any) -> Any:
    values = {
        **FILE,
        "seeds": [3],
        "device": "cpu",
        "partition": {"kind": "dirichlet", "alpha": 0.5, "participants": 5, "min-examples": 4},
        "model": {"name": "mlp", "options": {"hidden": [8]}},
        "local": {"mode": "plain", "batch-size": 8, "lr": 0.02},
        "teachers": {"epochs": 15, "batch-size": 8, "lr": 0.02},
        "consolidation": {**FILE["consolidation"], "epochs": 20, "batch-size": 16, "lr": 0.02},
        "server": {"cohort-size": 2},
        "rounds": {"horizon": 5},
        "targets": ["90%-of-converged"],
    }
    return build_experiment(merge(values, changes))


@pytest.mark.parametrize("upload", ["weights", "logits"])
def test_a_consolidated_start_of_a_federated_regression_beats_a_cold_one(run_arm: Any, upload: str) -> None:
    experiment = regression(**{"teachers.upload": upload})
    cold, consolidated = (run_arm(experiment, name).records for name in ("cold", "consolidated"))
    assert consolidated[0].accuracy > 0.1 > cold[0].accuracy
    assert cold[-1].accuracy > cold[0].accuracy
    assert all(record.loss is not None and record.loss > 0 for record in cold)


@pytest.mark.parametrize(
    "changes",
    [
        {"local": {"mode": "proximal", "mu": 0.1, "lr": 0.02}},
        {"local": {"mode": "kd", "temperature": 1.0, "lr": 0.02}},
        {"local": {"mode": "mutual", "lr": 0.02}},
        {"server": {"strategy": "feddf", "cohort-size": 2}},
        {"server": {"strategy": "fedadam", "cohort-size": 2}},
        {"partition": {"kind": "k-classes", "classes": 2, "participants": 5}},
        {"partition": {"kind": "label-overlap", "overlap": 0.2, "participants": 5}},
        {"partition": {"kind": "quantity-skew", "alpha": 1.0, "participants": 5}},
    ],
    ids=str,
)
def test_modes_strategies_and_partitions_run(run_arm: Any, changes: Any) -> None:
    records = run_arm(regression(**changes)).records
    assert records[-1].accuracy > records[0].accuracy


def test_the_result_does_not_depend_on_the_number_of_nodes(run_arm: Any) -> None:
    one, two = (run_arm(regression(), "consolidated", nodes=nodes) for nodes in (1, 3))
    first, second = (result.arrays.to_torch_state_dict() for result in (one, two))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_says_which_metric_its_records_hold(tmp_path: Any) -> None:
    from clients.client_app import app
    from kdfed.records import RunFolder
    from simulations.engines.inprocess import InProcessGrid
    from simulations.server_app import run_experiment

    experiment = regression(**{"rounds.horizon": 2})
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    summary = run_experiment(InProcessGrid(app, 1), experiment, folder, "inprocess")
    assert summary["metric"] == "r2"
    (partition,) = summary["partitions"]
    assert len(partition["class_names"]) == 10
    assert np.sum(partition["counts"]) == 244, "442 less 44, 88, 22 and 44"
    assert "R² on the evaluation split" in (tmp_path / "run" / "report.html").read_text()


def test_proximal_of_weight_0_is_plain() -> None:
    loss = ProximalLocal(mu=0.0).loss(lambda: network(0), REGRESSION)
    assert loss.penalty is None
    plain = PlainLocal().loss(lambda: network(0), REGRESSION)
    outputs, labels = torch.randn(4, 1), torch.randn(4)
    assert torch.equal(loss.examples(outputs, outputs, labels), plain.examples(outputs, outputs, labels))


def test_the_score_of_a_classification_takes_probabilities_as_well_as_logits() -> None:
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    score = CLASSIFICATION.score
    assert score(logits, labels) == score(torch.softmax(logits, 1), labels)
