from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdfed.errors import ConfigError
from kdfed.models import build_model, state_of
from kdfed.saved import save
from kdfed.settings import ModelSettings
from simulations.consolidating import Plan, Request, plan_of
from tests.kdfed.data.written import write
from tests.simulations.consolidating.shelf import MLP, card


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A file of an untrained model of digits that says what it is."""
    file = tmp_path / "t.safetensors"
    save(file, state_of(build_model(MLP, (1, 8, 8), 10, 1)), card())
    return file


def plan(teacher: Path, *assignments: str, **changes: Any) -> Plan:
    request: dict[str, Any] = {
        "teachers": [str(teacher)],
        "student": "mlp",
        "transfer": "digits",
        "out": teacher.with_name("s.safetensors"),
        "assignments": assignments,
    }
    return plan_of(Request(**{**request, **changes}))


def refused(teacher: Path, *assignments: str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(teacher, *assignments, **changes)
    return str(caught.value)


def test_all_that_is_held_out_for_nothing_is_the_transfer_set(teacher: Path) -> None:
    found = plan(teacher)
    splits = found.data.splits
    assert (len(splits.test), len(splits.validation), len(splits.evaluation)) == (359, 180, 0)
    parts = [found.transfer, splits.test, splits.validation]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    larger = plan(teacher, "data.splits.test=0.5", "data.splits.validation=0.2")
    assert len(larger.transfer) == pytest.approx(0.3 * 1797, abs=2)


def test_what_is_chosen_is_what_an_experiment_would_choose(teacher: Path) -> None:
    found = plan(
        teacher,
        "consolidation={ensemble: label-counts, epochs: 3}",
        "device=cpu",
        method="vanilla",
        labels=False,
    )
    method = found.arm.consolidation
    assert (method.method, method.epochs) == ("vanilla", 3)
    assert getattr(method, "ensemble").ensemble == "label-counts"  # noqa: B009
    assert plan(teacher, "consolidation.weight=0.5", labels=True).arm.consolidation.labels


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"assignments": ["consolidation.tempreture=2"]},
            "consolidation.tempreture: unknown key; did you mean",
        ),
        (
            {"assignments": ["rounds.horizon=2"]},
            "rounds: expected one of data, consolidation, device, threads",
        ),
        ({"assignments": ["data.source=mnist5k"]}, "data.source: is --transfer here"),
        ({"assignments": ["data=3"]}, "data: expected a mapping"),
        ({"assignments": ["device=cuda:99"]}, "device: expected a device of this machine"),
        ({"assignments": ["data.splits.evaluation=0.1"]}, "no rounds are counted"),
        ({"assignments": ["data.splits.test=0.95"]}, "data.splits: expected shares that leave examples"),
        ({"assignments": ["consolidation.transfer=own"]}, "expected public or noise or proxy or generated"),
        (
            {"assignments": ["consolidation.weight=0.5"]},
            "consolidation.weight: expected 1 on a transfer set without",
        ),
        ({"method": "vanila"}, "did you mean 'vanilla'?"),
        ({"method": "nowhere_at_all:Method"}, "No module named 'nowhere_at_all'"),
        ({"student": "mlpp"}, "--student: unknown model 'mlpp'; did you mean 'mlp'?"),
        ({"student": "none.safetensors"}, "--student: none.safetensors does not say which model"),
        ({"student": "resnet8", "transfer": "synthetic:kind=features"}, "--transfer: "),
        ({"transfer": "digitz"}, "--transfer: "),
        ({"out": Path("s.pt")}, "--out: expected a file .safetensors"),
        ({"out": Path("/dev/null/s.safetensors")}, "--out: expected a file that can be written"),
        ({"out": Path("x" * 300 + ".safetensors")}, "--out: expected a file that can be written"),
        ({"teachers": [""]}, "TEACHER.0: expected a path, got '': it is empty"),
        ({"teachers": ["~nobody_at_all/t.pt"]}, "TEACHER.0: expected a home folder"),
        ({"teachers": ["x" * 300 + ".pt"]}, "TEACHER.0: expected a path, got "),
        ({"teachers": ["\udcff.pt"]}, "TEACHER: '\\udcff.pt': expected text in UTF-8"),
        ({"student": "\udcff.pt=mlp"}, "--student: '\\udcff.pt=mlp': expected text in UTF-8"),
        ({"student": "x" * 300 + ".pt=mlp"}, "--student: expected a path, got "),
        ({"labels": True}, "--labels"),
        ({"teacher_model": "a.pt"}, "--teacher-model: expected a model"),
    ],
)
def test_wrong_words_are_mistakes_before_anything_is_read(
    teacher: Path, changes: dict[str, Any], said: str
) -> None:
    assignments = changes.pop("assignments", [])
    message = refused(teacher, *assignments, **changes)
    assert message.startswith("the command line: ")
    assert said.removeprefix("--labels") in message


def test_a_mapping_may_be_longer_than_a_name_of_a_file(teacher: Path) -> None:
    word = f"{{file: {teacher}, classes: [{', '.join(f'a long name of class {n}' for n in range(100))}]}}"
    assert "expected classes for the 10 outputs" in refused(teacher, teachers=[word])
    bare = teacher.with_name("t.pt")
    torch.save(state_of(build_model(MLP, (1, 8, 8), 10, 1)), bare)
    word = f"{bare}={{name: mlp, options: {{hidden: [16{' ' * 300}]}}}}"
    assert plan(teacher, teachers=[word]).teachers[0].settings == MLP


def test_a_teacher_that_is_named_twice_is_a_mistake(teacher: Path) -> None:
    twice = [str(teacher), str(teacher.parent / "." / teacher.name)]
    assert "TEACHER.1: expected each file once" in refused(teacher, teachers=twice)
    assert "TEACHER.1: expected each file once" in refused(
        teacher, teachers=[str(teacher), str(teacher.parent)]
    )


@pytest.mark.parametrize("name", ["s.safetensors", "s.html"])
def test_what_is_there_is_replaced_only_by_whoever_says_so(teacher: Path, name: str) -> None:
    there = teacher.with_name(name)
    there.write_text("mine")
    said = refused(teacher)
    assert f"--out: {there} exists already; choose another place, or replace it with --overwrite" in said
    assert plan(teacher, overwrite=True).page == teacher.with_name("s.html")
    assert there.read_text() == "mine"


def test_a_file_that_is_read_is_never_replaced(teacher: Path) -> None:
    for files in ({"teachers": [str(teacher)]}, {"teachers": [str(teacher.parent)]}):
        said = refused(teacher, out=teacher.parent / "." / teacher.name, overwrite=True, **files)
        assert "which is read; it would be replaced" in said
    start = teacher.with_name("start.safetensors")
    start.write_bytes(teacher.read_bytes())
    said = refused(teacher, student=str(start), out=start, overwrite=True)
    assert "which is read; it would be replaced" in said


def test_many_mistakes_are_told_at_once(teacher: Path) -> None:
    said = refused(
        teacher,
        "consolidation.lr=0",
        "data.limit=-1",
        "round=1",
        teachers=["{fil: x}"],
        student="{nam: x}",
        out=Path("s"),
    )
    for key in ("consolidation.lr", "data.limit", "round", "TEACHER", "--student", "--out"):
        assert f"  {key}: " in said


def test_every_wrong_file_is_told_at_once_before_anything_is_trained(teacher: Path) -> None:
    folder = teacher.parent
    torch.save([], folder / "list.pt")
    (folder / "cut.safetensors").write_bytes(teacher.read_bytes()[:-20])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(nn.Linear(1, 1), folder / "module.pt")
    words = [
        str(teacher),
        *(str(folder / n) for n in ("list.pt", "cut.safetensors", "module.pt", "none.pt=mlp")),
    ]
    said = refused(teacher, teachers=words, student="{name: cnn, options: {width: -1}}")
    assert "5 mistakes" in said
    assert "  --student: option 'width' of 'cnn'" in said
    for number, reason in (
        (1, "expected a state dict"),
        (2, "expected a whole .safetensors file"),
        (3, "nothing in it was executed"),
        (4, "is no file"),
    ):
        assert f"  TEACHER.{number}: " in said
        assert reason in said


def test_the_student_replaces_no_file_that_is_read(teacher: Path) -> None:
    assert "it would be replaced" in refused(teacher, out=teacher)


def test_a_student_from_a_file_is_that_of_the_file(teacher: Path) -> None:
    found = plan(teacher, student=str(teacher))
    assert found.arm.model == MLP
    assert found.start == str(teacher)
    expected = state_of(build_model(MLP, (1, 8, 8), 10, 1))
    assert all(torch.equal(value, expected[key]) for key, value in state_of(found.student).items())
    assert "has no effect with a student from a file" in refused(
        teacher, "consolidation.init=random", student=str(teacher)
    )
    assert "does not say which model" in refused(teacher, student=str(teacher.with_name("x.pt")))


def test_a_student_from_a_file_keeps_the_normalisation_of_the_file(teacher: Path) -> None:
    own = card().model_copy(update={"mean": (0.2,), "std": (0.4,)})
    file = teacher.with_name("start.safetensors")
    save(file, state_of(build_model(MLP, (1, 8, 8), 10, 1)), own)
    found = plan(teacher, student=str(file))
    assert (found.card.mean, found.card.std) == ((0.2,), (0.4,))
    assert not found.teachers[0].is_plain


def test_teachers_whose_files_say_no_model_have_one_in_common(teacher: Path) -> None:
    file = teacher.with_name("t.pt")
    torch.save(state_of(build_model(MLP, (1, 8, 8), 10, 2)), file)
    assert "TEACHER.1: " in refused(teacher, teachers=[str(teacher), str(file)])
    found = plan(
        teacher,
        teachers=[str(teacher), str(file)],
        teacher_model="{name: mlp, options: {hidden: [16]}}",
    )
    assert [one.settings for one in found.teachers] == [MLP, MLP]


def test_the_average_of_teachers_is_a_start(teacher: Path) -> None:
    other = teacher.with_name("o.safetensors")
    save(other, state_of(build_model(MLP, (1, 8, 8), 10, 2)), card())
    found = plan(
        teacher,
        "consolidation.init=averaged",
        teachers=[str(teacher), str(other)],
        student="{name: mlp, options: {hidden: [16]}}",
    )
    one, two = (state_of(build_model(MLP, (1, 8, 8), 10, seed)) for seed in (1, 2))
    for key, value in state_of(found.student).items():
        assert torch.allclose(value, (one[key] + two[key]) / 2, atol=1e-6)


def test_an_average_of_another_model_is_refused(teacher: Path) -> None:
    said = refused(teacher, "consolidation.init=averaged", student="{name: mlp, options: {hidden: [5]}}")
    assert "init 'averaged'" in said


# ----------------------------------------------------------------------------- data of all kinds


def images(folder: Path, *, classes: bool) -> Path:
    for number in range(20):
        for name in ("3", "5"):
            file = folder / (name if classes else "") / f"{name}-{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * number + 5 * (name == "3")).save(file)
    return folder


def test_images_without_labels_are_a_transfer_set(teacher: Path, tmp_path: Path) -> None:
    folder = images(tmp_path / "loose", classes=False)
    found = plan(teacher, transfer=f"folder:{folder}")
    assert not found.is_labelled
    assert found.card.classes == tuple("0123456789")
    assert (len(found.transfer), len(found.data.splits.validation)) == (36, 4)
    for words, said in (
        (["consolidation.ensemble=validated"], "fits or chooses with labels"),
        (["consolidation.select=best"], "fits or chooses with labels"),
    ):
        assert said in refused(teacher, *words, transfer=f"folder:{folder}")
    said = refused(teacher, "consolidation.weight=0.5", transfer=f"folder:{folder}", labels=True)
    assert "--labels: expected labels" in said


def test_tables_are_read_with_the_columns_that_a_model_was_trained_with(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    columns = {"a": draw.normal(3, 2, 200), "b": draw.normal(size=200), "label": np.arange(200) % 2}
    path = write(tmp_path / "t.parquet", columns)
    loose = write(tmp_path / "l.parquet", {"b": columns["b"], "c": columns["a"], "a": columns["a"]})
    from kdfed.data import prepare
    from kdfed.saved import Card
    from kdfed.settings import DataSettings

    settings = DataSettings(source=f"parquet:{path}", classes=("no", "yes"))
    file = tmp_path / "t.safetensors"
    save(file, state_of(build_model(MLP, (2,), 2, 1)), Card.of(MLP, settings, prepare(settings)))
    for table, labelled in ((path, True), (loose, False)):
        found = plan(file, transfer=f"parquet:{table}")
        assert found.is_labelled == labelled
        assert found.card.classes == ("no", "yes")
        assert found.card.columns is not None
        assert found.card.columns.inputs == ("a", "b")
    said = refused(file, "data.columns.label=yes_or_no", transfer=f"parquet:{loose}")
    assert "has no column 'yes_or_no'" in said


def test_a_regression_without_labels_is_refused(tmp_path: Path) -> None:
    from kdfed.data import prepare
    from kdfed.saved import Card
    from kdfed.settings import DataSettings

    settings = DataSettings(source="diabetes", task="regression")
    data = prepare(settings)
    file = tmp_path / "t.safetensors"
    save(file, state_of(build_model(MLP, data.input_shape, 1, 1)), Card.of(MLP, settings, data))
    found = plan(file, transfer="diabetes")
    assert getattr(found.arm.consolidation, "ensemble").ensemble == "mean-logits"  # noqa: B009
    assert found.card.task == "regression"
    table = write(tmp_path / "l.parquet", {f"x{n}": np.arange(50.0) + n for n in range(10)})
    said = refused(file, "data.columns=null", transfer=f"parquet:{table}")
    assert "--transfer: " in said


def test_a_model_of_ones_own_is_found_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ModelSettings(name="tests.kdfed.test_shelf:own")
    file = tmp_path / "t.safetensors"
    save(file, state_of(build_model(name, (1, 8, 8), 10, 1)), card().model_copy(update={"model": name}))
    assert "names somebody's code as its model" in refused(file)
    found = plan(file, teachers=[f"{file.name}={name.name}"]) if monkeypatch.chdir(tmp_path) is None else None
    assert found is not None
    assert found.teachers[0].settings == name


def test_one_set_of_classes_keeps_a_name_that_stands_for_two(teacher: Path, tmp_path: Path) -> None:
    cranes = ("crane", "crane", *"23456789")
    save(teacher, state_of(build_model(MLP, (1, 8, 8), 10, 1)), card().model_copy(update={"classes": cranes}))
    found = plan(teacher, transfer=f"folder:{images(tmp_path / 'loose', classes=False)}")
    assert found.card.classes == cranes
    model: Any = found.teachers[0].model
    assert model.kept.tolist() == model.columns.tolist() == list(range(10))
