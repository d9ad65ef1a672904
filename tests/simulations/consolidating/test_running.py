from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdfed.consolidate import consolidate
from kdfed.data import prepare
from kdfed.distill import VanillaConsolidation
from kdfed.distill.stacks import teacher_logits
from kdfed.models import build_model, load_state, state_of
from kdfed.records import weights_sha256
from kdfed.saved import Card, load, save
from kdfed.seeding import derive
from kdfed.settings import DataSettings
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION
from kdfed.train import predict
from simulations.cli import main
from simulations.consolidating import Outcome, Plan, Request, plan_of, render, run_plan
from tests.simulations.consolidating.shelf import DIGITS, MLP, SETS, card, shelf, trained

STUDENT = "{name: mlp, options: {hidden: [16]}}"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three teachers that know five, four and four of the ten digits."""
    torch.set_num_threads(1)
    return shelf(tmp_path_factory.mktemp("shelf"))


def run(teachers: list[str], *assignments: str, **changes: Any) -> tuple[Plan, Outcome]:
    request: dict[str, Any] = {
        "teachers": teachers,
        "student": STUDENT,
        "transfer": "digits",
        "out": Path("student.safetensors"),
        "assignments": ["consolidation.epochs=20", "consolidation.lr=0.2", "device=cpu", *assignments],
    }
    plan = plan_of(Request(**{**request, **changes}))
    return plan, run_plan(plan)


def test_a_student_learns_ten_digits_from_teachers_of_five_four_and_four(teachers: list[str]) -> None:
    _, outcome = run(teachers)
    alone, together = outcome.rows[:3], outcome.rows[3]
    assert [row.knows for row in outcome.rows] == [5, 4, 4, 10, 10, 10]
    assert max(row.score for row in alone) < 0.52
    assert together.score > 0.75
    assert outcome.after.score > 0.7 > 0.3 > outcome.before.score
    for row, known in zip(alone, SETS, strict=True):
        right = [place for place, value in enumerate(row.per_class) if value]
        assert set(right) <= set(known)
        assert len(right) == len(known)
    assert outcome.transferred == len(prepare(DIGITS).dataset) - 359 - 180


def test_scores_are_those_of_the_models_on_the_test_split(teachers: list[str]) -> None:
    """The slow twin: each class's share of right answers, one example after the other."""
    plan, outcome = run(teachers)
    test = plan.data.examples(plan.data.splits.test)
    student = build_model(MLP, (1, 8, 8), 10, 0)
    load_state(student, outcome.state)
    answers = predict(student, test.inputs).argmax(1).tolist()
    labels = test.labels.tolist()
    pairs = list(zip(answers, labels, strict=True))
    assert outcome.after.score == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    for place, share in enumerate(outcome.after.per_class):
        own = [a == b for a, b in pairs if b == place]
        assert share == pytest.approx(sum(own) / len(own))


def test_it_is_kdfed_consolidate_and_nothing_else(teachers: list[str]) -> None:
    """The same weights by hand: the models of the files, the function, the derived seed."""
    files = [str(Path(teachers[0]).with_name("all.safetensors"))]
    save(files[0], trained(range(10), 4), card())
    plan, outcome = run(files)
    data = plan.data
    teacher = load(files[0], device="cpu").model
    student = build_model(MLP, (1, 8, 8), 10, derive(0, "init"))
    consolidate(
        student,
        [teacher],
        data.examples(plan.transfer).without_labels(),
        data.examples(data.splits.validation),
        VanillaConsolidation(epochs=20, lr=0.2),
        derive(0, "consolidate"),
        setup=Setup(CLASSIFICATION, torch.device("cpu"), 1, "float32"),
    )
    assert weights_sha256(state_of(student)) == weights_sha256(outcome.state)


def test_the_same_twice_is_the_same_and_another_seed_is_another(teachers: list[str]) -> None:
    one, two, other = (weights_sha256(run(teachers, seed=seed)[1].state) for seed in (0, 0, 1))
    assert one == two != other


@pytest.mark.parametrize(
    ("assignments", "changes"),
    [
        (["consolidation.temperatures=[1.0, 4.0]"], {"method": "tuned"}),
        ([], {"method": "partitioned"}),
        (["consolidation.ensemble=validated"], {}),
        (["consolidation.ensemble=label-counts"], {}),
        (["consolidation.ensemble=confidence"], {}),
        (["consolidation.ensemble=mean-logits"], {}),
        (["consolidation.weight=0.5"], {"labels": True}),
        (["consolidation.transfer=noise", "consolidation.images=300"], {}),
        (["consolidation.augmentation=[crop]", "consolidation.views=1"], {}),
        (["consolidation.augmentation=[crop]"], {}),
        (["consolidation.init=random"], {}),
        (["consolidation.select=best"], {}),
    ],
    ids=lambda one: " ".join(map(str, one)) if isinstance(one, list) else str(one),
)
def test_methods_and_ensembles_take_teachers_of_some_classes(
    teachers: list[str], assignments: list[str], changes: dict[str, Any]
) -> None:
    plan, outcome = run(teachers, *assignments, "data.limit=900", "consolidation.epochs=6", **changes)
    assert len(outcome.rows) == 6
    assert outcome.rows[3].score > 0.5
    assert outcome.after.score > outcome.before.score or plan.arm.consolidation.transfer.transfer == "noise"
    assert outcome.result.steps > 0


def test_mutual_takes_teachers_of_all_classes_from_files(teachers: list[str], tmp_path: Path) -> None:
    file = tmp_path / "all.safetensors"
    save(file, trained(range(10), 4), card())
    _, outcome = run([str(file)], "consolidation.epochs=6", method="mutual")
    assert outcome.after.score > 0.5
    assert [row.name for row in outcome.rows][1] == "ensemble (mean-probabilities)"


def test_a_student_that_starts_from_a_teacher_begins_with_its_score(tmp_path: Path) -> None:
    file = tmp_path / "all.safetensors"
    save(file, trained(range(10), 4), card())
    _, outcome = run([str(file)], "consolidation.epochs=1", "consolidation.lr=0.001", student=str(file))
    assert outcome.before.score == outcome.rows[0].score > 0.9
    assert outcome.after.score > 0.9


def test_numbers_are_consolidated_too(tmp_path: Path) -> None:
    settings = DataSettings(source="diabetes", task="regression")
    data = prepare(settings)
    state = state_of(build_model(MLP, data.input_shape, 1, 1))
    file = tmp_path / "t.safetensors"
    save(file, state, Card.of(MLP, settings, data))
    plan, outcome = run([str(file)], transfer="diabetes")
    assert outcome.rows[0].score == pytest.approx(outcome.rows[1].score, abs=1e-6)
    assert outcome.after.per_class == ()
    assert "R²" in render(plan, outcome)


def test_without_labels_scores_are_the_agreement_with_the_ensemble(
    teachers: list[str], tmp_path: Path
) -> None:
    data = prepare(DIGITS)
    pixels = np.asarray(data.dataset.inputs[:400])[:, 0]
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number:03}.png")
    plan, outcome = run(teachers, transfer=f"folder:{tmp_path}")
    assert (outcome.measured, outcome.transferred) == (40, 360)
    together = outcome.rows[3]
    assert together.score == 1
    assert 0.5 < outcome.after.score < 1
    assert outcome.after.per_class == ()
    inputs = plan.data.examples(plan.data.splits.validation).inputs
    logits = teacher_logits([teacher.model for teacher in plan.teachers], inputs)
    answers = logits.softmax(2).mean(0).argmax(1)
    student = build_model(MLP, (1, 8, 8), 10, 0)
    load_state(student, outcome.state)
    agreed = (predict(student, inputs).argmax(1) == answers).double().mean().item()
    assert outcome.after.score == pytest.approx(agreed)
    assert "there are no labels" in render(plan, outcome)


def test_a_class_that_no_teacher_knows_is_told(teachers: list[str]) -> None:
    plan, outcome = run(teachers[:2], "consolidation.epochs=2")
    page = render(plan, outcome)
    assert "No teacher knows 8, 9: the student is not taught it." in page
    assert outcome.rows[2].knows == 8


# ----------------------------------------------------------------------------- the command


def test_the_command_writes_a_student_that_predicts_and_a_page(
    teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--student", STUDENT, "--transfer", "digits", "--out", "out/student.safetensors"]
    (tmp_path / "out").mkdir()
    keys = ["--set", "consolidation.epochs=20", "consolidation.lr=0.2", "device=cpu"]
    assert main(["consolidate", *teachers, *words, *keys]) == 0
    shown = capsys.readouterr().out
    for text in ("t0.safetensors", "5 of 10", "ensemble (mean-probabilities)", "student after", "page: "):
        assert text in shown
    page = (tmp_path / "out" / "student.html").read_text()
    assert "Class by class" in page
    assert "t2.safetensors" in page
    data = prepare(DIGITS)
    used = load("out/student.safetensors", device="cpu")
    inputs, labels = (
        np.asarray(part[data.splits.test]) for part in (data.dataset.inputs, data.dataset.labels)
    )
    assert used.score(used.outputs(inputs), labels) > 0.7
    assert main(["predict", "out/student.safetensors", "digits", "--out", "rows.csv"]) == 0


def test_the_command_refuses_with_every_mistake_and_exit_code_2(
    teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--student", "mlpp", "--transfer", "digits", "--out", "student.safetensors"]
    assert main(["consolidate", *teachers, "none.pt=mlp", *words, "--set", "consolidation.lr=0"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: the command line: 3 mistakes\n")
    assert "TEACHER.3: expected a file of weights" in shown.err
    assert "consolidation.lr: expected a number above 0" in shown.err
    assert "did you mean 'mlp'?" in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []
    assert main(["consolidate", *words]) == 2
    assert main(["consolidate", teachers[0], "--student", "mlp"]) == 2


def test_an_interruption_or_a_full_disk_leaves_what_was_there(
    teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    there = {"s.safetensors": b"mine", "s.html": b"mine too"}
    for name, content in there.items():
        Path(name).write_bytes(content)

    def interrupt(*words: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.consolidating.running.consolidate", interrupt)
    words = ["consolidate", teachers[0], "--student", STUDENT, "--transfer", "digits", "--set", "device=cpu"]
    assert main([*words, "--out", "s.safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--out", "s.safetensors", "--overwrite"]) == 130
    assert main([*words, "--out", "new/t.safetensors"]) == 130
    assert "Interrupted by SIGINT." in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == there
