from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.data import Dataset, load_source, prepare
from kdfed.data import checks as checks_of_sources
from kdfed.errors import DataError
from kdfed.settings import DataSettings

INPUTS = np.random.default_rng(0).normal(size=(40, 3))
LABELS = np.arange(40) % 2
NAMES = ("a", "b")

Make = Callable[[object], str]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that makes a value, or a function, a user's source, and returns the source's name."""
    module = types.ModuleType("own_sources")
    monkeypatch.setitem(sys.modules, "own_sources", module)
    prepare.cache_clear()

    def make(made: object) -> str:
        module.make = made if callable(made) else lambda settings: made  # type: ignore[attr-defined]
        return "own_sources:make"

    return make


def with_value(row: int, feature: int, value: float) -> np.ndarray:
    inputs = INPUTS.copy()
    inputs[row, feature] = value
    return inputs


def refusal(settings: dict[str, Any]) -> DataError:
    with pytest.raises(DataError) as caught:
        prepare(DataSettings.model_validate(settings))
    return caught.value


# ----------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of this test's own cast
def test_an_input_that_is_not_finite_is_named(own: Make, value: float, dtype: type) -> None:
    source = own((with_value(37, 1, value).astype(dtype), LABELS, NAMES))
    error = refusal({"source": source})
    assert "feature 1 of row 37" in str(error)
    assert "finite in float32 from own_sources:make" in str(error)


def test_the_row_is_that_of_the_source_although_a_limit_drew_others(own: Make) -> None:
    source = own((np.where(np.arange(40)[:, None] >= 37, np.nan, INPUTS), LABELS, NAMES))
    with pytest.raises(DataError, match="of row 37"):
        load_source(DataSettings(source=source, limit=39))


def test_an_input_that_normalisation_makes_infinite_is_named(own: Make) -> None:
    source = own((with_value(7, 1, 3e38), LABELS, NAMES))
    error = refusal({"source": source, "normalise": {"mean": [0, 0, 0], "std": [1, 1e-5, 1]}})
    assert error.key == "data.normalise"
    assert "3e+38 of feature 1 of own_sources:make in row 7" in str(error)


@pytest.mark.parametrize(
    ("inputs", "normalise"),
    [
        (np.full((40, 3), 7.0), "auto"),
        (np.full((40, 1, 4, 4), 9, np.uint8), "auto"),
        (np.random.default_rng(0).normal(size=(40, 1)), {"mean": [1e20], "std": [1]}),
    ],
)
def test_inputs_that_are_all_equal_once_normalised_are_refused(
    own: Make, inputs: np.ndarray, normalise: Any
) -> None:
    error = refusal({"source": own((inputs, LABELS, NAMES)), "normalise": normalise})
    assert "all 40 of own_sources:make are equal after normalisation" in str(error)
    assert error.key == ("data.source" if normalise == "auto" else "data.normalise")


def test_drawn_inputs_are_checked_too_and_never_drawn_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdfed.data.sources.synthetic import Drawn

    assert "equal after normalisation" in str(
        refusal({"source": "synthetic:examples=50,classes=1,shape=3,noise=0"})
    )
    drawn: list[int] = []
    real = Drawn._draw
    monkeypatch.setattr(Drawn, "_draw", lambda self, rows: drawn.append(len(rows)) or real(self, rows))
    prepare.cache_clear()
    prepare(DataSettings(source="synthetic:examples=60000,classes=2,shape=3x32x32"))
    assert 0 < sum(drawn) < 6000


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.ones((40, 0)), "at least one value"),
        (np.ones((40, 1, 0, 4), np.uint8), "at least one value"),
        (np.ones((40, 2), int), "expected uint8"),
        (np.array(1.0), "expected uint8"),
        (INPUTS * 1j, "expected uint8"),
        (np.ma.masked_less(INPUTS, 0), "some values are masked"),
    ],
)
def test_inputs_of_another_kind_are_refused(own: Make, inputs: np.ndarray, message: str) -> None:
    assert message in str(refusal({"source": own((inputs, LABELS, NAMES))}))


# ----------------------------------------------------------------------------- labels and test parts


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.where(LABELS == 1, np.nan, 0.0), "got nan in row 1"),
        (LABELS / 2, "got 0.5 in row 1"),
        (LABELS * 1.0, "make them integers"),
        (np.array(["a", "b"] * 20), "give the index of each in the class names"),
        (np.array(["a", None] * 20, dtype=object), "expected whole numbers"),
        (LABELS * 3 - 1, "got -1 in row 0"),
        (LABELS[:, None], "expected whole numbers"),
    ],
)
def test_labels_that_are_no_indices_of_classes_are_refused(
    own: Make, labels: np.ndarray, message: str
) -> None:
    assert message in str(refusal({"source": own((INPUTS, labels, NAMES))}))


@pytest.mark.parametrize("names", ["ab", 5])
def test_class_names_that_are_no_list_are_refused(own: Make, names: object) -> None:
    assert "a list of class names" in str(refusal({"source": own((INPUTS, LABELS, names))}))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.linspace(0, 1e300, 40), "in row 1"),
        (np.concatenate([np.arange(39) * 1e-40, [1e38]]), "finite in float32 once standardised"),
    ],
)
def test_numbers_that_float32_does_not_hold_are_refused(own: Make, labels: np.ndarray, message: str) -> None:
    settings = {"source": own((INPUTS, labels, ())), "task": "regression"}
    assert message in str(refusal({**settings, "splits": {"seed": 3}}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([-1, 0], "got -1"),
        ([0, 40], "got 40"),
        ([3, 5, 3], "got 3 2 times"),
        ([True] * 3, "got bool (3,)"),
        ([1.0, 2.0], "got float64 (2,)"),
        ([[1]], "got int64 (1, 1)"),
    ],
)
def test_rows_of_a_test_part_that_are_not_there_or_twice_are_refused(
    own: Make, rows: list[Any], message: str
) -> None:
    error = refusal({"source": own(Dataset(INPUTS, LABELS, NAMES, np.array(rows)))})
    assert f"distinct rows from 0 to 39, {message}" in str(error)


def test_a_mask_of_all_rows_is_a_test_part(own: Make) -> None:
    data = load_source(DataSettings(source=own(Dataset(INPUTS, LABELS, NAMES, np.arange(40) > 30))))
    assert data.official_test is not None
    assert data.official_test.tolist() == list(range(31, 40))


def test_a_test_part_of_classes_that_nobody_can_learn_is_refused(own: Make) -> None:
    labels = np.where(np.arange(40) < 30, 0, np.arange(40) % 2)
    source = own(Dataset(INPUTS, labels, NAMES, np.arange(30, 40)))
    error = refusal({"source": source, "splits": {"test": "official"}})
    assert error.key == "data.splits.test"
    assert "5 of its 10 examples are of ['b']" in str(error)
    prepare(DataSettings(source=source))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((1.0,), (1.0,), "each of the 3 features, got 1 and 1"),
        ((0.0, 0.0, 0.0), (1.0, 1.0), "got 3 and 2"),
        ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), "got 0 and 0 for feature 1"),
        ((0.0, 0.0, 0.0), (1.0, -1.0, 1.0), "got 0 and -1 for feature 1"),
        ((0.0, 0.0, np.nan), (1.0, 1.0, 1.0), "got nan and 1 for feature 2"),
        ((0.0, 0.0, 0.0), None, "both mean and std"),
        (3, 3, "numbers as mean and std"),
        (("x", 0, 0), (1, 1, 1), "numbers as mean and std"),
    ],
)
def test_a_data_sets_own_mean_and_std_are_checked(own: Make, mean: Any, std: Any, message: str) -> None:
    error = refusal({"source": own(Dataset(INPUTS, LABELS, NAMES, None, mean, std))})
    assert message in str(error)
    assert error.key == "data.source"


def test_a_function_that_ends_the_process_is_an_error_of_the_source(own: Make) -> None:
    assert "raised SystemExit: 3" in str(refusal({"source": own(lambda settings: sys.exit(3))}))


# ----------------------------------------------------------------------------- nobody changes what was loaded


def kinds_of_array() -> list[np.ndarray]:
    single = INPUTS.astype(np.float32)
    view = single.copy().view()
    view.flags.writeable = False
    return [single.copy(), single.copy()[:], view, INPUTS.copy()]


@pytest.mark.parametrize("kind", range(len(kinds_of_array())))
def test_what_a_user_writes_later_changes_nothing(own: Make, kind: int) -> None:
    inputs, labels, test = kinds_of_array()[kind], LABELS.copy(), np.arange(30, 40)
    data = prepare(DataSettings(source=own(Dataset(inputs, labels, NAMES, test))))
    before = data.examples(np.arange(40))
    owner = inputs if inputs.base is None else inputs.base
    owner[:], labels[:], test[:] = 5, 0, 0
    after = data.examples(np.arange(40))
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.labels, after.labels)
    assert data.dataset.official_test is not None
    assert data.dataset.official_test.tolist() == list(range(30, 40))


def test_a_users_own_arrays_stay_as_they_are(own: Make) -> None:
    inputs = INPUTS.astype(np.float32)
    load_source(DataSettings(source=own((inputs, LABELS, NAMES))))
    inputs[0, 0] = 1
    assert inputs.flags.writeable


@pytest.mark.parametrize("source", ["digits", "synthetic:examples=50,classes=2,shape=3"])
def test_loaded_arrays_cannot_be_written(source: str) -> None:
    data = prepare(DataSettings(source=source)).dataset
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 1
    if isinstance(data.inputs, np.ndarray):
        with pytest.raises(ValueError, match="read-only"):
            data.inputs[0] = 1


def test_examples_that_a_model_changes_in_place_are_read_as_before() -> None:
    data = prepare(DataSettings(source="digits"))
    first = data.examples(data.splits.test)
    kept = first.inputs.clone()
    first.inputs.mul_(0)
    first.labels.zero_()
    assert torch.equal(data.examples(data.splits.test).inputs, kept)
    assert data.examples(data.splits.test).labels.any()


# ----------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"source": "synthetic:examples=1000000000000,classes=2,shape=3"}, "data.source"),
        ({"source": f"synthetic:examples={'9' * 4000},classes=2,shape=3"}, "data.source"),
        ({"source": "synthetic:examples=10,classes=2,shape=3x1000000x1000000"}, "data.source"),
        ({"source": "synthetic:examples=100000,classes=2,shape=3x1024x1024"}, "data.splits"),
        ({"source": "digits", "shape": [3, 1000000, 1000000]}, "data.shape"),
        ({"source": "digits", "shape": [3, 1000000, 1000000], "limit": 1}, "data.shape"),
        (
            {
                "source": "synthetic:examples=50,classes=2,shape=1x2x2",
                "shape": [1, 1000000, 1000000],
            },
            "data.shape",
        ),
    ],
)
def test_what_cannot_fit_in_memory_is_refused_before_it_is_allocated(
    settings: dict[str, Any], key: str
) -> None:
    error = refusal(settings)
    assert "of memory of this machine" in str(error)
    assert len(str(error)) < 500
    assert error.key == key


def test_a_containers_limit_counts_where_it_is_lower(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    whole = checks_of_sources.machine_memory() or 0
    (tmp_path / "low").write_text("1048576\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(checks_of_sources, "_LIMITS", (tmp_path / "none", tmp_path / "gone"))
    assert (checks_of_sources.machine_memory() or 0) >= whole > 2**20
    monkeypatch.setattr(checks_of_sources, "_LIMITS", (tmp_path / "none", tmp_path / "low"))
    assert checks_of_sources.machine_memory() == 2**20


def test_a_machine_that_does_not_tell_its_memory_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(checks_of_sources.os, "sysconf")
    checks_of_sources.check_memory(2**70, "everything", "change it", "data.source")
