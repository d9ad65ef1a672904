"""Rows that are drawn when they are asked for."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from kdfed.data import Dataset, load_source, prepare
from kdfed.data.sources.synthetic import Drawn
from kdfed.errors import DataError
from kdfed.settings import DataSettings

IMAGES = "synthetic:examples=6000,classes=10,shape=1x4x4"
FEATURES = "synthetic:examples=6000,classes=3,shape=7,noise=0.5"


def load(source: str, **keys: Any) -> Dataset:
    return load_source(DataSettings(source=source, **keys))


@pytest.mark.parametrize("source", [IMAGES, FEATURES])
def test_a_row_is_the_same_in_any_batch(source: str) -> None:
    inputs = load(source).inputs
    everything = np.asarray(inputs)
    assert everything.shape == inputs.shape
    assert everything.dtype == inputs.dtype
    rows = np.random.default_rng(0).integers(0, 6000, 50)
    assert np.array_equal(inputs[rows], everything[rows])
    assert all(np.array_equal(inputs[int(row)], everything[row]) for row in rows)
    assert np.array_equal(inputs[10:20:3], everything[10:20:3])
    assert inputs[rows[:0]].shape == (0, *inputs.shape[1:])


def test_a_limited_source_keeps_the_rows_of_the_whole() -> None:
    whole, part = load(FEATURES), load(FEATURES, limit=100)
    assert part.inputs.shape == (100, 7)
    everything = np.asarray(whole.inputs).tolist()
    places = [everything.index(row) for row in np.asarray(part.inputs).tolist()]
    assert places == sorted(set(places))
    assert whole.labels[places].tolist() == part.labels.tolist()


def test_a_row_agrees_with_a_slow_twin() -> None:
    """The same counter in a generator of its own."""
    labels = np.array([0, 1, 1], dtype=np.int64)
    prototypes = np.array([[0.0, 10.0], [20.0, 30.0]])
    drawn = Drawn(None, labels, prototypes, noise=0.5, key=77)
    for row in range(3):
        noise = np.random.Generator(np.random.Philox(key=77, counter=[0, 0, row, 0])).standard_normal(2)
        twin = prototypes[labels[row]] + 0.5 * noise
        np.testing.assert_array_equal(drawn[row], twin.astype(np.float32))


def test_the_noise_is_standard_normal_and_independent_between_rows() -> None:
    drawn = Drawn(None, np.zeros(20_000, dtype=np.int64), np.zeros((1, 8)), noise=1.0, key=3)
    values = np.asarray(drawn, dtype=np.float64)
    assert abs(values.mean()) < 0.01  # standard error 0.0025
    assert abs(values.std() - 1) < 0.01
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("index", [(0, 1), 6000, -1, np.array([0.5]), np.array([True, False])])
def test_an_index_that_names_no_rows_is_refused(index: Any) -> None:
    with pytest.raises(IndexError, match="expected"):
        load(IMAGES).inputs[index]


def test_millions_of_examples_cost_only_the_rows_that_are_asked_for() -> None:
    """2,000,000 images of 784 pixels would be 1.5 GB; labels, splits and one permutation are 16 MB each."""
    settings = DataSettings.model_validate(
        {
            "source": "synthetic:examples=2000000,classes=10,shape=1x28x28,seed=5",
            "splits": {"test": 0.0005, "validation": 0.0005, "transfer": 0.0005},
        }
    )
    tracemalloc.start()
    started = time.process_time()
    data = prepare.__wrapped__(settings)
    data.examples(data.splits.train[:2])
    seconds = time.process_time() - started
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 40e6
    assert peak < 160e6
    assert seconds < 10
    assert data.input_shape == (1, 28, 28)


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
