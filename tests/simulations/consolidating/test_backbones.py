"""``kdfed consolidate`` of models on pre-trained backbones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.arrays import spec_of
from kdfed.data import PreparedData, prepare
from kdfed.errors import ConfigError
from kdfed.models import build_model, state_of
from kdfed.saved import Card, load, read_card, save
from kdfed.settings import DataSettings, ModelSettings
from simulations.cli import main
from simulations.consolidating import Request, plan_of, run_plan
from tests.small_backbones import OTHER, TINY

DIGITS = DataSettings(source="digits", limit=300)
HEAD = {"backbone": TINY}
LAST = {"backbone": TINY, "trainable": "last:1"}
SAYING = f"{{backbone: '{TINY}'}}"


@pytest.fixture(scope="module")
def data() -> PreparedData:
    return prepare(DIGITS)


def settings_of(values: dict[str, Any]) -> ModelSettings:
    return ModelSettings.model_validate_json(json.dumps(values))


def with_card(path: Path, data: PreparedData, values: dict[str, Any], seed: int = 0, **more: Any) -> Path:
    settings = settings_of(values)
    model = build_model(settings, data.input_shape, data.classes, seed)
    save(path, state_of(model), Card.of(settings, DIGITS, data).model_copy(update=more))
    return path


def request(teachers: list[str], **changes: Any) -> Request:
    assignments = ["data.limit=300", "device=cpu", "consolidation.epochs=2", *changes.pop("more", [])]
    given: dict[str, Any] = {"student": "cnn", "transfer": "digits", "out": Path("student.safetensors")}
    return Request(teachers, assignments=assignments, **{**given, **changes})


@pytest.mark.parametrize("student", ["cnn", json.dumps(HEAD), json.dumps(LAST), f"{{backbone: '{OTHER}'}}"])
@pytest.mark.parametrize("more", [[], ["consolidation.augmentation=[flip]", "consolidation.views=2"]])
def test_every_student_learns_from_teachers_on_backbones(
    tmp_path: Path, data: PreparedData, student: str, more: list[str]
) -> None:
    one = with_card(tmp_path / "a.safetensors", data, HEAD)
    two = with_card(tmp_path / "b.safetensors", data, {"name": "cnn", "options": {"width": 2}})
    bare = tmp_path / "c.pt"
    torch.save(state_of(build_model(settings_of(LAST), data.input_shape, 10, 3)), bare)
    words = [f"{one}={SAYING}", str(two), f"{bare}={json.dumps(LAST)}"]
    plan = plan_of(request(words, student=student, more=more))
    outcome = run_plan(plan)
    assert [row.name for row in outcome.rows[:3]] == ["a.safetensors", "b.safetensors", "c.pt"]
    assert outcome.rows[0].model == f"{TINY}, head"
    assert outcome.result.ensemble_accuracy is not None
    held = data.splits.test if len(data.splits.test) == outcome.measured else plan.data.splits.test
    own = load(one, model=TINY, device="cpu")
    score = own.score(own.outputs(plan.data.dataset.inputs[held]), plan.data.dataset.labels[held])
    assert outcome.rows[0].score == pytest.approx(score)


def test_the_command_writes_a_student_on_a_backbone_that_can_be_used(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = with_card(tmp_path / "a.safetensors", data, HEAD)
    out = tmp_path / "student.safetensors"
    words = ["consolidate", f"{one}={SAYING}", "--student", json.dumps(LAST), "--transfer", "digits"]
    words += ["--set", "data.limit=300", "--set", "consolidation.epochs=1", "--set", "device=cpu"]
    assert main([*words, "--out", str(out)]) == 0
    assert read_card(out).backbone_sha256 == read_card(one).backbone_sha256
    made = load(out, model=TINY, device="cpu")
    assert set(spec_of(state_of(made.model))) == set(
        spec_of(state_of(build_model(settings_of(LAST), data.input_shape, 10, 0)))
    )
    assert set(made.predict(data.dataset.inputs[:20])) <= set(data.dataset.class_names)
    again = tmp_path / "again.safetensors"
    start = ["consolidate", f"{one}={SAYING}", "--student", f"{out}={SAYING}", "--transfer", "digits"]
    assert main([*start, *words[6:], "--out", str(again)]) == 0
    assert read_card(again).model == read_card(out).model


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"method": "mutual"}, "consolidation.method", "read what the student does"),
        ({"more": ["consolidation.transfer=noise"]}, "consolidation.transfer", "expected public or proxy"),
        (
            {"more": ["consolidation.augmentation=[flip]"]},
            "consolidation.views",
            "expected a number of views",
        ),
        ({"student": f"{{backbone: '{TINY}x'}}"}, "--student", "Tinyx"),
    ],
)
def test_what_teachers_on_backbones_cannot_do_is_a_mistake(
    tmp_path: Path, data: PreparedData, changes: dict[str, Any], key: str, says: str
) -> None:
    one = with_card(tmp_path / "a.safetensors", data, HEAD)
    with pytest.raises(ConfigError) as caught:
        plan_of(request([f"{one}={SAYING}"], **changes))
    (mistake,) = caught.value.mistakes
    assert mistake.key == key
    assert says in mistake.message


def test_a_file_that_names_somebodys_backbone_is_read_only_if_the_reader_says_so_too(
    tmp_path: Path, data: PreparedData
) -> None:
    one = with_card(tmp_path / "a.safetensors", data, HEAD)
    for word, says in ((str(one), "names somebody's code"), (f"{one}={{backbone: '{OTHER}'}}", "expected")):
        with pytest.raises(ConfigError) as caught:
            plan_of(request([word]))
        (mistake,) = caught.value.mistakes
        assert mistake.key.startswith("TEACHER")
        assert says in mistake.message
        assert TINY in mistake.message


def test_a_teacher_on_other_weights_of_its_backbone_is_refused(tmp_path: Path, data: PreparedData) -> None:
    one = with_card(tmp_path / "a.safetensors", data, HEAD, backbone_sha256="0" * 64)
    with pytest.raises(ConfigError, match="expected the weights of") as caught:
        plan_of(request([f"{one}={SAYING}"]))
    assert len(caught.value.mistakes) == 1


def test_tables_have_no_backbone(tmp_path: Path, data: PreparedData) -> None:
    one = with_card(tmp_path / "a.safetensors", data, HEAD)
    with pytest.raises(ConfigError) as caught:
        plan_of(
            request([f"{one}={SAYING}"], transfer="synthetic:shape=5,classes=10,examples=300", student="mlp")
        )
    assert any("takes inputs of shape" in mistake.message for mistake in caught.value.mistakes)


def test_a_student_reads_what_it_read_whatever_the_normalisation_of_others(
    tmp_path: Path, data: PreparedData
) -> None:
    """A backbone normalises by itself: a start whose data were normalised otherwise is the same model."""
    one = with_card(tmp_path / "a.safetensors", data, HEAD, mean=(0.3,), std=(0.7,))
    start = with_card(tmp_path / "b.safetensors", data, HEAD, seed=4)
    plan = plan_of(request([f"{one}={SAYING}"], student=f"{start}={SAYING}"))
    assert plan.teachers[0].is_plain
    held = plan.data.splits.test
    np.testing.assert_array_equal(
        load(one, model=TINY, device="cpu").outputs(plan.data.dataset.inputs[held]).argmax(1).shape,
        (len(held),),
    )
