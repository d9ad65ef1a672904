"""``start: recipe``: what it spells out, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdfed.closed_form.distillation import HeadDistillation
from kdfed.config.recipe import RATE, RATE_OF_HEAD
from kdfed.errors import ConfigError
from kdfed.records.schema import Summary
from simulations.experiments import build_experiment
from tests.shelf_files import written
from tests.small_backbones import TINY

EXPERIMENT: dict[str, Any] = {
    "name": "one",
    "data": {"source": "digits"},
    "partition": {"kind": "uniform", "participants": 4},
    "model": {"name": "mlp"},
    "local": {"lr": 0.1},
    "rounds": {"horizon": 4},
    "arms": {"cold": {"start": "random"}, "warm": {"start": "recipe"}},
}


def spelled(arm: dict[str, Any] | None = None, **more: Any) -> Any:
    arms = {"cold": {"start": "random"}, "warm": {"start": "recipe", **(arm or {})}}
    return build_experiment({**EXPERIMENT, "arms": arms, **more})


def test_the_solved_model_is_distilled_into_the_initial_weights() -> None:
    experiment = spelled()
    arm = experiment.arm("warm")
    assert arm.start == "random"
    assert arm.closed_form is not None
    assert (arm.closed_form.head.head, arm.closed_form.at) == ("ridge", (0,))
    assert arm.closed_form.distillation == HeadDistillation()
    assert arm.closed_form.head.calibrate == "sums"
    assert arm.local.lr == pytest.approx(0.1 * RATE)
    assert experiment.arm("cold").local.lr == 0.1
    assert list(experiment.recipes) == ["warm"]


@pytest.mark.parametrize(
    ("trainable", "reason"),
    [
        ("head", "nothing but a linear head is trained"),
        ("last:1", "pre-trained features"),
        ("all", "pre-trained"),
    ],
)
def test_on_a_backbone_nothing_is_distilled(trainable: str, reason: str) -> None:
    experiment = spelled(model={"backbone": TINY, "trainable": trainable}, data={"source": "mnist5k"})
    assert reason in experiment.recipes["warm"]
    arm = experiment.arm("warm")
    assert arm.start == "random"
    assert arm.closed_form is not None
    assert (arm.closed_form.at, arm.closed_form.distillation) == ((0,), None)
    assert arm.local.lr == pytest.approx(0.1 * RATE_OF_HEAD)
    assert "nothing is distilled" in experiment.recipes["warm"]


def test_teachers_from_files_are_distilled_first(tmp_path: Path) -> None:
    files = written(tmp_path, spelled(), {"name": "mlp"})
    experiment = spelled({"teachers": {"from": files}})
    arm = experiment.arm("warm")
    assert arm.start == "consolidated"
    assert arm.closed_form is not None
    assert (arm.closed_form.at, arm.closed_form.distillation) == ((0,), HeadDistillation())
    assert "teachers exist in files" in experiment.recipes["warm"]


def test_teachers_from_files_serve_where_stages_of_a_backbone_are_trained(tmp_path: Path) -> None:
    data = {"source": "mnist5k", "limit": 600}
    files = written(tmp_path, spelled(data=data), {"backbone": TINY})
    for trainable, start in (("last:1", "consolidated"), ("head", "random")):
        model = {"backbone": TINY, "trainable": trainable}
        experiment = spelled(model=model, data=data, teachers={"from": files})
        assert experiment.arm("warm").start == start


def test_a_regression_is_not_calibrated() -> None:
    data = {"source": "diabetes", "task": "regression"}
    targets = {"targets": [0.3], "consolidation": {"temperature": 1.0, "ensemble": "mean-logits"}}
    closed_form = spelled(data=data, **targets).arm("warm").closed_form
    assert closed_form is not None
    assert closed_form.head.calibrate == "no"


def test_what_the_arm_says_itself_stays() -> None:
    arm = spelled({"local.lr": 0.03, "closed-form": {"head": "lda", "distillation": {"epochs": 3}}}).arm(
        "warm"
    )
    assert arm.local.lr == 0.03
    assert arm.closed_form is not None
    assert (arm.closed_form.head.head, arm.closed_form.at) == ("lda", (0,))
    assert arm.closed_form.distillation == HeadDistillation(epochs=3)
    assert spelled({"closed-form": None}).arm("warm").closed_form is None


def test_the_resolved_experiment_is_the_same_and_still_says_why() -> None:
    experiment = spelled(controls=["server"])
    again = build_experiment(yaml.safe_load(experiment.to_yaml()))
    assert again == experiment
    assert again.recipes == experiment.recipes


def test_experiments_without_a_recipe_are_written_as_before() -> None:
    assert "recipes" not in build_experiment({**EXPERIMENT, "arms": {"cold": {}}}).to_yaml()
    assert Summary.model_fields["recipes"].get_default(call_default_factory=True) == {}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"start": "recipe", "arms": {"one": {}}}, "start", "set arms.one.start"),
        ({"arms": {"one": {"start": "recipe", "local": {"rate": 1}}}}, "arms.one.local.rate", "unknown key"),
        (
            {
                "data": {"source": "mnist5k"},
                "model": {"backbone": TINY},
                "arms": {"one": {"start": "recipe", "teachers": {"epochs": 3}}},
            },
            "arms.one.teachers",
            "has no effect with start: random",
        ),
        ({"arms": {"one": {"start": "recipes"}}}, "arms.one.start", "recipe"),
        ({"arms": {"one": {"start": "recipe"}}, "rounds": {"horizon": -1}}, "rounds.horizon", "expected"),
    ],
)
def test_mistakes_are_told_as_ever(changes: Any, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_experiment({**EXPERIMENT, **changes})
    found = [mistake for mistake in caught.value.mistakes if mistake.key == key]
    assert any(words in mistake.message for mistake in found), caught.value.mistakes
