"""A solved head's model that is distilled into the weights before it: what it gives, and what it leaves."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn import functional

from kdfed.closed_form.distillation import HeadDistillation
from kdfed.data import prepare
from kdfed.errors import ConfigError
from kdfed.models import build_model, load_state
from kdfed.seeding import derive
from simulations.server_app import server_data
from tests.small_backbones import TINY

HEAD = {"head": "ridge", "penalty": 0.1, "calibrate": "sums"}
DISTILLED = {"closed-form": {**HEAD, "distillation": {"epochs": 100}}, "rounds.horizon": 0}
SOLVED = {"closed-form": HEAD, "rounds.horizon": 0}


def model_of(experiment: Any, state: Any = None) -> torch.nn.Module:
    """Return the initial model, or one of other weights."""
    data, seed = prepare(experiment.data), experiment.seeds[0]
    model = build_model(experiment.arm("cold").model, data.input_shape, data.classes, derive(seed, "init"))
    if state is not None:
        load_state(model, state)
    return model


def weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.arrays.to_torch_state_dict())


def divergence(teacher: torch.nn.Module, student: torch.nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        target = teacher(inputs).softmax(1)
        return float(functional.kl_div(student(inputs).log_softmax(1), target, reduction="batchmean"))


def test_it_answers_as_the_solved_model_does_with_other_weights(tiny: Any, run_arm: Any) -> None:
    experiment = tiny(**DISTILLED)
    result, solved = run_arm(experiment), run_arm(tiny(**SOLVED))
    teacher, student = model_of(experiment, weights(solved)), model_of(experiment, weights(result))
    inputs = server_data(prepare(experiment.data), experiment.arm("cold").model).transfer.inputs
    assert divergence(teacher, student, inputs) < 0.3 * divergence(teacher, model_of(experiment), inputs)
    name = "3.weight"  # the head of the MLP
    assert weights(result)[name].norm() < 0.5 * weights(solved)[name].norm()
    assert not torch.equal(weights(result)["1.weight"], weights(solved)["1.weight"])
    (refit,) = result.refits
    batches = -(-len(inputs) // 64)
    assert (refit.distillation_steps, solved.refits[0].distillation_steps) == (100 * batches, 0)
    assert str(refit).endswith(f"distilled in {100 * batches} steps")


def test_it_costs_the_server_alone(tiny: Any, run_arm: Any) -> None:
    one, other = run_arm(tiny(**DISTILLED)).records[0], run_arm(tiny(**SOLVED)).records[0]
    for key in ("exchanges", "participant_uploads", "bytes_up", "bytes_down", "local_steps"):
        assert getattr(one, key) == getattr(other, key)


def test_a_step_is_that_of_a_plain_loop(tiny: Any, run_arm: Any) -> None:
    """One epoch of one batch, whose order says nothing; without clipping, schedule and momentum."""
    plain = {
        "epochs": 1,
        "batch-size": 10**6,
        "lr": 0.3,
        "momentum": 0.0,
        "schedule": "constant",
        "clip": 0.0,
        "warm-up": 0.0,
        "temperature": 2.0,
    }
    experiment = tiny(**{**DISTILLED, "closed-form": {**HEAD, "distillation": plain}})
    result, solved = run_arm(experiment), run_arm(tiny(**SOLVED))
    teacher, student = model_of(experiment, weights(solved)), model_of(experiment)
    inputs = server_data(prepare(experiment.data), experiment.arm("cold").model).transfer.inputs
    with torch.no_grad():
        target = (teacher(inputs) / 2).softmax(1)
    losses = -(target * ((student(inputs) / 2).log_softmax(1) - target.log())).sum(1)
    (4 * losses.mean()).backward()
    for key, parameter in student.named_parameters():
        wanted = parameter.detach() - 0.3 * parameter.grad
        torch.testing.assert_close(weights(result)[key], wanted, rtol=1e-4, atol=1e-5)


def test_nodes_cohorts_and_order_change_no_bit(tiny: Any, run_arm: Any) -> None:
    usual = weights(run_arm(tiny(**DISTILLED)))
    other = weights(run_arm(tiny(**DISTILLED, **{"server.cohort-size": 1}), nodes=5, order=random.Random(1)))
    assert all(torch.equal(usual[key], other[key]) for key in usual)


def test_every_refit_is_distilled_with_a_seed_of_its_own(tiny: Any, run_arm: Any) -> None:
    late = {"closed-form": {**HEAD, "at": [0, 1], "distillation": {"epochs": 2}}, "rounds.horizon": 1}
    steps = [refit.distillation_steps for refit in run_arm(tiny(**late)).refits]
    assert len(steps) == 2
    assert min(steps) > 0


def test_the_student_of_teachers_is_distilled_again(tiny: Any, run_arm: Any) -> None:
    result = run_arm(tiny(only="consolidated", **DISTILLED), "consolidated")
    assert result.refits[0].distillation_steps > 0
    assert result.consolidation is not None


def test_it_is_had_in_a_regression_and_on_a_backbone_whose_last_part_is_trained(
    tiny: Any, run_arm: Any
) -> None:
    regression = {"data": {"source": "diabetes", "task": "regression"}, "targets": [0.3]}
    head = {"head": "ridge", "distillation": {"lr": 0.02}}
    result = run_arm(tiny(only="cold", **regression, **{"closed-form": head, "rounds.horizon": 0}))
    assert result.refits[0].distillation_steps > 0
    assert result.records[0].accuracy > 0.2  # R^2
    backbone = {"backbone": TINY, "trainable": "last:1"}
    assert run_arm(tiny(only="cold", model=backbone, **DISTILLED)).refits[0].distillation_steps > 0


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"labels": True}, ".labels", "False"),
        ({"epochs": 0}, ".epochs", "expected a number of at least"),
        ({"views": 3}, ".views", "has no effect without augmentation"),
        ({"epoch": 3}, ".epoch", "did you mean 'epochs'?"),
        ({"temperature": 0}, ".temperature", "expected a number of at least"),
    ],
)
def test_mistakes_are_told(tiny: Any, settings: Any, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(**{"closed-form": {**HEAD, "distillation": settings}})
    found = {mistake.key: mistake.message for mistake in caught.value.mistakes}
    assert words in found[f"closed-form.distillation{key}"], found


def test_the_defaults_can_be_written_and_read(tiny: Any) -> None:
    experiment = tiny(**{"closed-form": {**HEAD, "distillation": {}}})
    assert experiment.arm("cold").closed_form.distillation == HeadDistillation()
    assert "temperature: 1.0" in experiment.to_yaml()
