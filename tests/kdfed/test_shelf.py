from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdfed.consolidate import consolidate
from kdfed.data import Examples, prepare
from kdfed.distill import MutualConsolidation, VanillaConsolidation
from kdfed.ensembles import LabelCounts
from kdfed.errors import ConfigError, DataError, KdfedError
from kdfed.models import State, build_model, state_of
from kdfed.preflight import check_data
from kdfed.saved import Card, save
from kdfed.settings import DataSettings, ModelSettings, NormaliseSettings, TeacherFile
from kdfed.setup import Setup
from kdfed.shelf import (
    label_counts,
    model_files,
    problem_with_method,
    read_start,
    read_teacher,
    teachers_of,
)
from kdfed.task import CLASSIFICATION
from simulations.experiments import build_experiment

DIGITS = DataSettings(source="digits", limit=300)
MLP = ModelSettings(name="mlp", options={"hidden": (8,)})


@pytest.fixture
def student() -> Card:
    return Card.of(MLP, DIGITS, prepare(DIGITS))


@pytest.fixture
def inputs() -> torch.Tensor:
    data = prepare(DIGITS)
    return data.examples(data.splits.test).inputs


def weights(seed: int = 1, classes: int = 10) -> State:
    return state_of(build_model(MLP, (1, 8, 8), classes, seed))


def model_of(state: State, classes: int = 10) -> nn.Module:
    model = build_model(MLP, (1, 8, 8), classes, 0)
    model.load_state_dict(state)
    return model.eval()


def with_card(path: Path, student: Card, seed: int = 1, **changes: Any) -> TeacherFile:
    """Write a model that says what it is."""
    card = Card.model_validate({**student.model_dump(), **changes})
    save(path, weights(seed, card.outputs), card)
    return TeacherFile(file=str(path))


def bare(path: Path, state: State, **keys: Any) -> TeacherFile:
    """Write weights alone."""
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return TeacherFile(file=str(path), **{"model": MLP, **keys})


# ----------------------------------------------------------------------------- teachers that fit


@pytest.mark.parametrize("name", ["t.safetensors", "t.pt", "t.pth"])
def test_weights_are_those_of_the_file_to_the_bit(
    tmp_path: Path, student: Card, inputs: torch.Tensor, name: str
) -> None:
    teacher = read_teacher(bare(tmp_path / name, weights()), student)
    assert teacher.is_plain
    assert teacher.knows.all()
    assert torch.equal(teacher.model(inputs), model_of(weights())(inputs))


def test_a_file_of_kdfed_says_its_model(tmp_path: Path, student: Card, inputs: torch.Tensor) -> None:
    teacher = read_teacher(with_card(tmp_path / "t.safetensors", student), student)
    assert (teacher.settings, teacher.is_plain) == (MLP, True)
    assert torch.equal(teacher.model(inputs), model_of(weights())(inputs))


def test_classes_in_another_order_are_put_in_the_students(
    tmp_path: Path, student: Card, inputs: torch.Tensor
) -> None:
    order = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
    classes = tuple(str(one) for one in order)
    expected = model_of(weights())(inputs)
    for teacher in (
        read_teacher(with_card(tmp_path / "t.safetensors", student, classes=classes), student),
        read_teacher(bare(tmp_path / "t.pt", weights(), classes=order), student),
    ):
        assert teacher.knows.all()
        assert torch.allclose(teacher.model(inputs)[:, list(order)], expected, atol=1e-6)


def test_a_teacher_of_some_classes_says_which(tmp_path: Path, student: Card, inputs: torch.Tensor) -> None:
    classes = ("7", "zebra", "2", "0")
    own = model_of(weights(classes=4), 4)(inputs)
    for teacher in (
        read_teacher(with_card(tmp_path / "t.safetensors", student, classes=classes), student),
        read_teacher(bare(tmp_path / "t.pt", weights(classes=4), classes=("7", None, "2", 0)), student),
    ):
        assert np.flatnonzero(teacher.knows).tolist() == [0, 2, 7]
        assert torch.allclose(teacher.model(inputs)[:, [7, 2, 0]], own[:, [0, 2, 3]], atol=1e-6)


def test_a_teacher_normalises_inputs_as_it_was_trained(
    tmp_path: Path, student: Card, inputs: torch.Tensor
) -> None:
    """The digits are normalised by 0.5 and 0.5 here; a teacher by 0.1 and 0.3 gets the same pixels."""
    pixels = inputs * student.std[0] + student.mean[0]
    expected = model_of(weights())((pixels - 0.1) / 0.3)
    for teacher in (
        read_teacher(with_card(tmp_path / "t.safetensors", student, mean=(0.1,), std=(0.3,)), student),
        read_teacher(
            bare(tmp_path / "t.pt", weights(), normalise=NormaliseSettings(mean=(0.1,), std=(0.3,))), student
        ),
    ):
        assert torch.allclose(teacher.model(inputs), expected, atol=1e-5)


def test_numbers_are_put_into_the_units_of_the_student(tmp_path: Path) -> None:
    settings = DataSettings(source="diabetes", task="regression")
    data = prepare(settings)
    student = Card.of(MLP, settings, data)
    state = state_of(build_model(MLP, data.input_shape, 1, 1))
    path = tmp_path / "t.safetensors"
    save(path, state, student.model_copy(update={"label_mean": 10.0, "label_std": 2.0}))
    teacher = read_teacher(TeacherFile(file=str(path)), student)
    model = build_model(MLP, data.input_shape, 1, 0).eval()
    model.load_state_dict(state)
    inputs = data.examples(data.splits.test).inputs
    expected = (model(inputs) * 2.0 + 10.0 - data.label_mean) / data.label_std
    assert torch.allclose(teacher.model(inputs), expected, atol=1e-5)


def test_teachers_of_other_classes_teach_a_student_together(tmp_path: Path, student: Card) -> None:
    """Two linear teachers of six and of five digits, trained here, and one student of all ten."""
    data = prepare(DataSettings(source="digits"))
    train, transfer = data.examples(data.splits.train), data.examples(data.splits.transfer)
    validation = data.examples(data.splits.validation)
    files = []
    for number, own in enumerate(([0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9])):
        rows = torch.isin(train.labels, torch.tensor(own))
        model = _trained(Examples(train.inputs[rows], train.labels[rows] - own[0]), len(own))
        files.append(bare(tmp_path / f"{number}.pt", state_of(model), classes=tuple(own)))
    teachers = [read_teacher(file, student) for file in files]
    new = build_model(MLP, (1, 8, 8), 10, 5)
    settings = VanillaConsolidation(epochs=100, lr=0.2)
    setup = Setup(CLASSIFICATION, torch.device("cpu"), 1, "float32")
    models = [teacher.model for teacher in teachers]
    result = consolidate(new, models, transfer, validation, settings, 0, setup=setup)
    assert result.ensemble_accuracy is not None
    assert result.ensemble_accuracy > 0.6  # either teacher alone gets at most six tenths right
    assert result.accuracy > 0.55


def _trained(examples: Examples, classes: int) -> nn.Module:
    model = build_model(MLP, (1, 8, 8), classes, 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(examples.inputs), examples.labels).backward()
        optimiser.step()
    return model


# ----------------------------------------------------------------------------- label counts, methods


def test_label_counts_stand_at_the_students_classes(tmp_path: Path, student: Card) -> None:
    file = bare(tmp_path / "t.pt", weights(classes=3), classes=(4, None, 1), label_counts=(7, 5, 3))
    counts = read_teacher(file, student).label_counts
    assert counts is not None
    assert counts.tolist() == [0, 3, 0, 0, 7, 0, 0, 0, 0, 0]


def test_without_counts_a_teacher_has_one_of_each_class_that_it_knows(tmp_path: Path, student: Card) -> None:
    some = read_teacher(bare(tmp_path / "s.pt", weights(classes=2), classes=(4, 1)), student)
    every = read_teacher(bare(tmp_path / "e.pt", weights()), student)
    assert label_counts([some, every]).tolist() == [[0, 1, 0, 0, 1, 0, 0, 0, 0, 0], [1] * 10]
    told = read_teacher(bare(tmp_path / "c.pt", weights(), label_counts=(5,) * 10), student)
    with pytest.raises(KdfedError, match="of every teacher, or of none"):
        label_counts([some, told])


def test_methods_that_train_teachers_refuse_those_that_know_some_classes(
    tmp_path: Path, student: Card
) -> None:
    some = read_teacher(bare(tmp_path / "s.pt", weights(classes=2), classes=(4, 1)), student)
    every = read_teacher(bare(tmp_path / "e.pt", weights()), student)
    said = problem_with_method(MutualConsolidation(), [every, some], MLP)
    assert said is not None
    assert "s.pt" in said
    assert "e.pt" not in said
    assert problem_with_method(MutualConsolidation(), [every], MLP) is None
    assert problem_with_method(VanillaConsolidation(ensemble=LabelCounts()), [every, some], MLP) is None
    said = problem_with_method(VanillaConsolidation(init="averaged"), [every, some], MLP)
    assert said is not None
    assert "init 'averaged' needs teachers of the student's own model" in said
    assert problem_with_method(VanillaConsolidation(init="averaged"), [every], MLP) is None
    other = ModelSettings(name="mlp")
    assert problem_with_method(VanillaConsolidation(init="averaged"), [every], other) is not None


# ----------------------------------------------------------------------------- files that cannot be used


def refused(file: TeacherFile, student: Card) -> str:
    with pytest.raises(DataError) as caught:
        read_teacher(file, student, "teachers.from.3")
    assert caught.value.key == "teachers.from.3"
    return str(caught.value)


class Evil:
    """What runs a command when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def evil_archive(path: Path, mark: Path) -> None:
    torch.save({"weight": Evil(mark)}, path)


def evil_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Evil(mark)}))


def evil_old(path: Path, mark: Path) -> None:
    torch.save({"weight": Evil(mark)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [evil_archive, evil_pickle, evil_old], ids=lambda one: one.__name__)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_code_in_a_file_is_not_run(
    tmp_path: Path, student: Card, write: Callable[[Path, Path], None], suffix: str
) -> None:
    mark, file = tmp_path / "mark", tmp_path / f"evil{suffix}"
    write(file, mark)
    said = refused(TeacherFile(file=str(file), model=MLP), student)
    assert "evil" in said
    assert not mark.exists()


def test_the_files_of_these_tests_are_evil(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for write in (evil_archive, evil_old):
        write(tmp_path / "evil.pt", mark)
        torch.load(tmp_path / "evil.pt", weights_only=False)
        assert mark.exists()
        mark.unlink()


def whole_module(path: Path) -> None:
    torch.save(model_of(weights()), path)


def scripted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", pickle.dumps(()))
        archive.writestr("m/data.pkl", pickle.dumps(()))
        archive.writestr("m/version", "3")


def checkpoint(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": weights()}, path)


def a_list(path: Path) -> None:
    torch.save([torch.ones(3)], path)


def empty(path: Path) -> None:
    path.touch()


def half(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:-300])


def text(path: Path) -> None:
    path.write_text("weights")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (whole_module, "nothing in it was executed"),
        (scripted, "nothing in it was executed"),
        (checkpoint, "expected only dense tensors by name"),
        (a_list, "expected a state dict"),
        (empty, "damaged"),
        (half, "damaged"),
        (text, "damaged"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_is_no_state_dict_is_refused_with_the_reason(
    tmp_path: Path, student: Card, write: Callable[[Path], None], said: str
) -> None:
    path = tmp_path / "t.pt"
    write(path)
    assert said in refused(TeacherFile(file=str(path), model=MLP), student)


def test_no_file_a_folder_and_another_kind_of_file_are_refused(tmp_path: Path, student: Card) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "t.onnx").touch()
    for name in ("none.pt", "folder.pt"):
        assert "is no file" in refused(TeacherFile(file=str(tmp_path / name), model=MLP), student)
    assert ".safetensors, .pt or .pth" in refused(
        TeacherFile(file=str(tmp_path / "t.onnx"), model=MLP), student
    )


def test_a_safetensors_file_that_is_cut_off_is_refused(tmp_path: Path, student: Card) -> None:
    file = with_card(tmp_path / "t.safetensors", student)
    path = Path(file.file)
    path.write_bytes(path.read_bytes()[:-100])
    assert "expected a whole .safetensors file" in refused(file, student)


def test_weights_that_do_not_fit_are_named_with_both_shapes(tmp_path: Path, student: Card) -> None:
    wide = state_of(build_model(ModelSettings(name="mlp", options={"hidden": (9,)}), (1, 8, 8), 10, 1))
    said = refused(bare(tmp_path / "t.pt", wide), student)
    key = next(iter(wide))
    assert f"wrong shape of {key}: expected (8, 64), got (9, 64) (and 2 other wrong shapes)" in said
    many = {f"k{number:02}": torch.ones(1) for number in range(30)}
    said = refused(bare(tmp_path / "m.pt", many), student)
    assert "unexpected ['k00', 'k01', 'k02', 'k03', 'k04'] and 25 more" in said
    deep = {**weights(), key: weights()[key].double()}
    assert f"wrong dtype of {key}: expected float32, got float64" in refused(
        bare(tmp_path / "d.pt", deep), student
    )
    broken = {**weights(), key: torch.full_like(weights()[key], torch.nan)}
    assert f"not finite: {key}" in refused(bare(tmp_path / "n.pt", broken), student)


def test_a_number_of_outputs_is_told_by_classes(tmp_path: Path, student: Card) -> None:
    said = refused(bare(tmp_path / "t.pt", weights(classes=4)), student)
    assert "10 outputs" in said
    assert "name its own model, options and classes" in said


def test_a_huge_shape_of_a_small_file_takes_no_memory(tmp_path: Path, student: Card) -> None:
    key = next(iter(weights()))
    state = {**weights(), key: torch.ones(1).expand(10**7, 10**7)}
    torch.save(state, tmp_path / "t.pt")
    assert "wrong shape" in refused(TeacherFile(file=str(tmp_path / "t.pt"), model=MLP), student)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"classes": ("0", "1", "elephant", "3")}, "have no class 'elephant'"),
        ({"classes": ("0", "1", "1", "3")}, "expected each class once, got '1' again"),
        ({"classes": (0, None, None, None)}, "expected a teacher of at least 2 of the classes"),
        ({"classes": (0, 1, 2, 3), "label_counts": (1, 2)}, "label-counts for the 4 outputs"),
        ({"classes": (0, 1, 2, 3), "model": None}, "does not say which model its weights are of"),
        ({"classes": (0, 1, 2, 3), "model": ModelSettings(name="mlpp")}, "did you mean 'mlp'?"),
        (
            {"classes": (0, 1, 2, 3), "normalise": NormaliseSettings(mean=(0, 0), std=(1, 1))},
            "expected 1 mean and std",
        ),
    ],
)
def test_what_is_said_of_a_file_must_fit_it(
    tmp_path: Path, student: Card, keys: dict[str, Any], said: str
) -> None:
    assert said in refused(bare(tmp_path / "t.pt", weights(classes=4), **keys), student)


def test_a_file_that_says_what_it_is_is_not_contradicted(tmp_path: Path, student: Card) -> None:
    file = with_card(tmp_path / "t.safetensors", student)

    def said(**keys: Any) -> str:
        return refused(file.model_copy(update=keys), student)

    assert "expected a model 'cnn'" in said(model=ModelSettings(name="cnn"))
    assert "the file says them" in said(model=ModelSettings(name="mlp", options={"hidden": (9,)}))
    assert "remove normalise" in said(normalise=NormaliseSettings(mean=(0,), std=(1,)))
    assert "expected classes for the 10 outputs" in said(classes=("0", "1"))
    assert read_teacher(file.model_copy(update={"model": MLP}), student).is_plain


def test_another_task_and_other_inputs_are_refused(tmp_path: Path, student: Card) -> None:
    data = DataSettings(source="diabetes", task="regression")
    numbers = Card.of(MLP, data, prepare(data))
    file = with_card(tmp_path / "t.safetensors", student)
    assert "a model of a classification, expected one of a regression" in refused(file, numbers)
    larger = student.model_copy(update={"input_shape": (1, 16, 16)})
    assert "inputs of shape [1, 8, 8], those of the data are [1, 16, 16]; set data.shape" in refused(
        file, larger
    )
    strangers = ("cat", "dog")
    other = with_card(tmp_path / "o.safetensors", student, classes=strangers)
    assert "has outputs for ['cat', 'dog']" in refused(other, student)


CALLS: list[str] = []


def own(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    CALLS.append("own")
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), classes))


def test_code_that_a_file_names_is_not_run_unless_its_reader_names_it_too(
    tmp_path: Path, student: Card
) -> None:
    settings = ModelSettings(name=f"{__name__}:own")
    path = tmp_path / "t.safetensors"
    state = state_of(build_model(settings, (1, 8, 8), 10, 1))
    save(path, state, student.model_copy(update={"model": settings}))
    CALLS.clear()
    assert f"t.safetensors={settings.name}" in refused(TeacherFile(file=str(path)), student)
    assert CALLS == []
    assert read_teacher(TeacherFile(file=str(path), model=settings), student).is_plain


def test_one_name_for_several_classes_is_refused_unless_all_are_those_of_the_data(
    tmp_path: Path, student: Card, inputs: torch.Tensor
) -> None:
    """ImageNet has two classes of cranes: a teacher of the very same classes needs no matching."""
    cranes = ("crane", "crane", *"23456789")
    file = with_card(tmp_path / "t.safetensors", student, classes=cranes)
    assert "expected each class once, got 'crane' again" in refused(
        file, student.model_copy(update={"classes": ("crane", *"123456789")})
    )
    other = with_card(tmp_path / "o.safetensors", student, classes=("crane", *"123456789"))
    same = student.model_copy(update={"classes": cranes})
    assert "expected each class once, got 'crane' again" in refused(other, same)
    teacher = read_teacher(file, same)
    assert teacher.is_plain
    assert torch.equal(teacher.model(inputs), model_of(weights())(inputs))


def test_names_of_classes_are_compared_in_one_form(tmp_path: Path, student: Card) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    menu = student.model_copy(update={"classes": (composed, *"123456789")})
    file = bare(tmp_path / "t.pt", weights(), classes=(decomposed, *"123456789"))
    assert read_teacher(file, menu).is_plain


def test_weights_and_normalisations_without_finite_logits_are_refused(tmp_path: Path, student: Card) -> None:
    huge = {key: value * 1e30 for key, value in weights().items()}
    for file in (
        bare(tmp_path / "h.pt", huge),
        bare(tmp_path / "s.pt", weights(), normalise=NormaliseSettings(mean=(1e30,), std=(1e-30,))),
        with_card(tmp_path / "m.safetensors", student, mean=(1e308,)),
        with_card(tmp_path / "d.safetensors", student, std=(1e-320,)),
    ):
        assert "expected finite logits of the model in" in refused(file, student)
    with pytest.raises(DataError, match=r"expected finite logits of the model in .*h\.pt"):
        read_start(bare(tmp_path / "h.pt", huge), student, "--student")


@pytest.mark.parametrize("card", ["{", '{"format": 2}', '{"format": 1, "mean": [NaN]}', "[" * 10**5])
def test_a_card_that_cannot_be_read_is_a_mistake_of_the_teacher(
    tmp_path: Path, student: Card, card: str
) -> None:
    save_file(weights(), tmp_path / "t.safetensors", metadata={"kdfed": card})
    assert "as kdfed writes it" in refused(TeacherFile(file=str(tmp_path / "t.safetensors")), student)


def test_a_teacher_of_other_inputs_is_refused_before_a_model_for_them_is_built(
    tmp_path: Path, student: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = with_card(tmp_path / "t.safetensors", student)
    monkeypatch.setattr("kdfed.shelf.load", lambda *words, **more: pytest.fail("it was built"))
    assert "inputs of shape [1, 8, 8], those of the data are [3]; use data of its kind" in refused(
        file, student.model_copy(update={"input_shape": (3,)})
    )


# ----------------------------------------------------------------------------- a student's start


def test_a_student_starts_with_the_weights_of_a_file(tmp_path: Path, student: Card) -> None:
    for file in (
        with_card(tmp_path / "t.safetensors", student),
        bare(tmp_path / "t.pt", weights()),
    ):
        model = read_start(file, student)
        assert model.training
        assert all(torch.equal(value, weights()[key]) for key, value in state_of(model).items())


def test_a_start_of_other_classes_is_refused(tmp_path: Path, student: Card) -> None:
    swapped = with_card(tmp_path / "t.safetensors", student, classes=("1", "0", *"23456789"))
    other = with_card(tmp_path / "n.safetensors", student, mean=(0.1,))
    mapped = bare(tmp_path / "m.pt", weights(), classes=tuple(range(10)))
    for file, said in (
        (swapped, "its classes are"),
        (other, "its inputs were normalised in another way"),
        (mapped, "remove classes"),
    ):
        with pytest.raises(DataError, match=said):
            read_start(file, student)


# ----------------------------------------------------------------------------- experiments


def experiment(where: str | Sequence[Any], **teachers: Any) -> Any:
    return build_experiment(
        {
            "name": "shelf",
            "data": {"source": "digits", "limit": 300},
            "partition": {"kind": "uniform", "participants": 3},
            "model": {"name": "mlp", "options": {"hidden": [8]}},
            "teachers": {"from": where, **teachers},
            "rounds": {"horizon": 1},
            "arms": {"consolidated": {"start": "consolidated"}},
        }
    )


def card_of(chosen: Any) -> Card:
    return Card.of(chosen.model, chosen.data, prepare(chosen.data))


def test_teachers_of_an_experiment_are_the_files_of_a_folder_in_their_order(
    tmp_path: Path, student: Card, inputs: torch.Tensor
) -> None:
    for number in (2, 0, 1):
        with_card(tmp_path / f"{number}.safetensors", student, seed=number)
    (tmp_path / "notes.txt").touch()
    chosen = experiment(str(tmp_path))
    found = teachers_of(chosen.arm("consolidated"), card_of(chosen))
    assert list(found) == [0, 1, 2]
    for number, teacher in found.items():
        assert torch.equal(teacher.model(inputs), model_of(weights(number))(inputs))
    assert check_data(chosen) == []


def test_teachers_of_an_experiment_can_be_a_list(
    tmp_path: Path, student: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_card(tmp_path / "a.safetensors", student)
    bare(tmp_path / "b.pt", weights(classes=2))
    monkeypatch.chdir(tmp_path)
    entry = {"file": "b.pt", "model": {"name": "mlp", "options": {"hidden": [8]}}, "classes": [4, "1"]}
    chosen = experiment(["a.safetensors", entry])
    arm = chosen.arm("consolidated")
    monkeypatch.chdir("/")  # paths were resolved where it was read
    found = teachers_of(arm, card_of(chosen))
    assert [teacher.path.name for teacher in found.values()] == ["a.safetensors", "b.pt"]
    assert check_data(chosen) == []
    assert build_experiment(_read(chosen.to_yaml())) == chosen


def _read(text: str) -> Any:
    from kdfed.config.document import parse

    return parse(text)


def test_every_wrong_file_of_an_experiment_is_a_mistake_at_once(tmp_path: Path, student: Card) -> None:
    with_card(tmp_path / "a.safetensors", student)
    torch.save([], tmp_path / "b.pt")
    chosen = experiment([str(tmp_path / name) for name in ("a.safetensors", "b.pt", "c.pt")])
    mistakes = check_data(chosen)
    assert [mistake.key for mistake in mistakes] == ["teachers.from.1", "teachers.from.2"]
    with pytest.raises(ConfigError, match="2 mistakes"):
        teachers_of(chosen.arm("consolidated"), card_of(chosen))


def test_a_file_that_is_named_twice_is_a_mistake(tmp_path: Path, student: Card) -> None:
    with_card(tmp_path / "a.safetensors", student)
    with_card(tmp_path / "b.safetensors", student)
    os.symlink("a.safetensors", tmp_path / "c.safetensors")
    (mistake,) = check_data(experiment(str(tmp_path)))
    assert mistake.key == "teachers.from.2"
    assert "c.safetensors again, which is teachers.from.0 already" in mistake.message


def test_paths_that_nothing_can_have_are_mistakes_of_the_key(tmp_path: Path, student: Card) -> None:
    for where, key in (("x" * 300, "teachers.from"), (["x" * 300 + ".pt"], "teachers.from.0")):
        (mistake,) = check_data(experiment(where))
        assert mistake.key == key
        assert "File name too long" in mistake.message


def test_a_folder_that_cannot_be_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kdfed.shelf.models_in", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*: Permission denied; permit it"):
        model_files(str(tmp_path))


def test_more_files_than_participants_and_no_files_are_mistakes(tmp_path: Path, student: Card) -> None:
    with pytest.raises(DataError, match="expected models"):
        model_files(str(tmp_path))
    with pytest.raises(DataError, match="expected a folder"):
        model_files(str(tmp_path / "none"))
    for number in range(4):
        with_card(tmp_path / f"{number}.safetensors", student)
    (mistake,) = check_data(experiment(str(tmp_path)))
    assert "at most one model for each of the 3 participants, got 4" in mistake.message


def test_partial_teachers_and_a_method_that_trains_them_are_a_mistake(tmp_path: Path, student: Card) -> None:
    with_card(tmp_path / "a.safetensors", student, classes=("0", "1"))
    chosen = experiment(str(tmp_path))
    values = _read(chosen.to_yaml())
    values["consolidation"] = {"method": "mutual"}
    (mistake,) = check_data(build_experiment(values))
    assert mistake.key == "consolidation.method"


def test_keys_without_effect_beside_files_are_mistakes(tmp_path: Path) -> None:
    for keys, key in (
        ({"count": 2}, "teachers.count"),
        ({"upload": "logits"}, "teachers.upload"),
        ({"model": {"name": "cnn"}}, "teachers.model"),
    ):
        with pytest.raises(ConfigError, match=f"{key}: has no effect with teachers.from"):
            experiment(["a.pt"], **keys)
