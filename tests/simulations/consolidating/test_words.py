from __future__ import annotations

from pathlib import Path

import pytest

from kdfed.settings import ModelSettings, TeacherFile
from simulations.consolidating.words import student_in, teachers_in

MLP = ModelSettings(name="mlp", options={"hidden": (8,)})


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a.safetensors", TeacherFile(file="a.safetensors")),
        (
            "runs/x/models/b-0.pt=cnn",
            TeacherFile(file="runs/x/models/b-0.pt", model=ModelSettings(name="cnn")),
        ),
        ("b.pth=my_models:net", TeacherFile(file="b.pth", model=ModelSettings(name="my_models:net"))),
        ("b.pt={name: mlp, options: {hidden: [8]}}", TeacherFile(file="b.pt", model=MLP)),
        (
            "{file: b.pt, classes: [cat, null, 3], label-counts: [1, 2, 3]}",
            TeacherFile(file="b.pt", classes=("cat", None, 3), label_counts=(1, 2, 3)),
        ),
        ("anything", TeacherFile(file="anything")),
    ],
)
def test_a_teacher_is_a_file_with_what_it_does_not_say(word: str, expected: TeacherFile) -> None:
    assert teachers_in([word]) == ([expected], [])


def test_a_folder_stands_for_its_models_and_a_name_with_a_sign_for_itself(tmp_path: Path) -> None:
    for name in ("b.pt", "a=1.pt=x.pt", "c.safetensors", "notes.md"):
        (tmp_path / name).touch()
    found, mistakes = teachers_in([str(tmp_path), str(tmp_path / "a=1.pt=x.pt")])
    assert [Path(file.file).name for file in found] == ["a=1.pt=x.pt", "b.pt", "c.safetensors", "a=1.pt=x.pt"]
    assert mistakes == []


def test_every_wrong_word_is_a_mistake(tmp_path: Path) -> None:
    words = ["{file: a.pt, clases: [a]}", "{file: ", "{model: {name: cnn}}", str(tmp_path), "b.pt={nam: cnn}"]
    found, mistakes = teachers_in(words)
    assert found == []
    said = [mistake.message for mistake in mistakes]
    assert "clases: unknown key; did you mean 'classes'?" in said[0]
    assert "expected a YAML mapping" in said[1]
    assert "file: is required" in said[2]
    assert "expected models" in said[3]
    assert "model.nam: unknown key; did you mean 'name'?" in said[4]
    assert {mistake.key for mistake in mistakes} == {"TEACHER"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cnn", ModelSettings(name="cnn")),
        ("torchvision:resnet18", ModelSettings(name="torchvision:resnet18")),
        ("{name: mlp, options: {hidden: [8]}}", MLP),
        ("start.safetensors", TeacherFile(file="start.safetensors")),
        ("start.pt=cnn", TeacherFile(file="start.pt", model=ModelSettings(name="cnn"))),
        (
            "{file: start.pt, model: {name: cnn}}",
            TeacherFile(file="start.pt", model=ModelSettings(name="cnn")),
        ),
    ],
)
def test_a_student_is_a_model_or_a_file_to_start_from(
    word: str, expected: ModelSettings | TeacherFile
) -> None:
    assert student_in(word) == (expected, [])


def test_a_wrong_student_is_a_mistake() -> None:
    found, (mistake,) = student_in("{name: cnn, optons: {}}")
    assert found is None
    assert mistake.key == "--student"
    assert "did you mean 'options'?" in mistake.message
