from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfed.data import load_source
from kdfed.data.dataset import class_names
from kdfed.errors import DataError
from kdfed.settings import DataSettings
from simulations.experiments import build_experiment


@pytest.fixture
def user_source(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_sources")
    monkeypatch.setitem(sys.modules, "my_sources", module)
    return module


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
    with pytest.raises(DataError, match=r"got 5 features a row: correct the data or data\.shape"):
        load_source(DataSettings(source="synthetic:examples=30,classes=3,shape=5", shape=(1, 8, 8)))


def test_a_shape_of_features_is_theirs_and_no_images() -> None:
    source = "synthetic:examples=30,classes=3,shape=5"
    assert load_source(DataSettings(source=source, shape=(5,))).inputs.shape == (30, 5)
    with pytest.raises(DataError, match=r"expected inputs of the shape \[6\] in .* got 5 features a row"):
        load_source(DataSettings(source=source, shape=(6,)))
    with pytest.raises(DataError, match=r"expected rows of 6 features in digits, .* got images: set it to"):
        load_source(DataSettings(source="digits", limit=20, shape=(6,)))


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


@given(limit=st.integers(1, 59), seed=st.integers(0, 3))
def test_any_limit_draws_distinct_rows(limit: int, seed: int) -> None:
    settings = DataSettings.model_validate(
        {"source": "synthetic:examples=60,classes=3,shape=2", "limit": limit, "splits": {"seed": seed}}
    )
    data = load_source(settings)
    assert len(np.unique(data.inputs, axis=0)) == limit == len(data)


def test_a_source_without_the_labels_of_the_task_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected 'regression' with source 'diabetes'") as error:
        load_source(DataSettings(source="diabetes"))
    assert error.value.key == "data.task"
    with pytest.raises(DataError, match=r"expected 'classification' with source 'digits'"):
        load_source(DataSettings(task="regression", source="digits"))


def test_a_known_source_may_have_two_classes_of_one_name() -> None:
    assert class_names(DataSettings(source="torchvision:ImageNet"), ("crane", "crane")) == ("crane", "crane")
