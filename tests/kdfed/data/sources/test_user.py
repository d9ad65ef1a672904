from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from kdfed.data import Dataset, load_source
from kdfed.errors import DataError
from kdfed.settings import DataSettings


@pytest.fixture
def user_source(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_sources")
    monkeypatch.setitem(sys.modules, "my_sources", module)
    return module


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
    ("source", "message"),
    [
        ("time:sleep", "to have a signature that can be read; wrap it in a function"),
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


@pytest.mark.parametrize(
    ("signature", "because"),
    [
        ("()", "too many positional arguments"),
        ("(settings, seed)", "missing a required argument: 'seed'"),
        ("(*, settings)", "too many positional arguments"),
    ],
)
def test_a_function_of_another_signature_is_shown_with_what_was_expected(
    user_source: types.ModuleType, signature: str, because: str
) -> None:
    exec(f"def make{signature}: raise AssertionError('it was called')", vars(user_source))
    with pytest.raises(DataError) as caught:
        load_source(DataSettings(source="my_sources:make"))
    assert str(caught.value) == (
        "expected my_sources:make to take (settings) and to return (inputs, labels, class names), got "
        f"{signature}: {because}"
    )
    assert caught.value.key == "data.source"


def test_a_function_may_have_arguments_with_defaults(user_source: types.ModuleType) -> None:
    def make(settings: DataSettings, rows: int = 4, **more: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        assert not more
        return np.arange(rows * 2.0).reshape(rows, 2), np.arange(rows) % 2, ["a", "b"]

    user_source.make = make  # type: ignore[attr-defined]
    assert len(load_source(DataSettings(source="my_sources:make"))) == 4
