from __future__ import annotations

import importlib

import numpy as np
import pytest

from kdfed.data import SOURCES, Source, load_source
from kdfed.data.dataset import Listing
from kdfed.data.sources import kind_of
from kdfed.data.sources.registry import USERS
from kdfed.settings import DataSettings
from simulations.cli import catalogue

FILES = {**{name: name.removesuffix(":") for name in SOURCES}, "hf:": "hub", USERS: "user"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_a_module_of_its_own_with_a_line_for_the_list(name: str) -> None:
    module = importlib.import_module(f"kdfed.data.sources.{FILES[name]}")
    source = SOURCES[name]
    assert source is module.SOURCE
    assert source.list_examples.__module__ == module.__name__
    assert (module.__doc__ or "").strip()
    assert catalogue()["data sources (data.source)"][name] == source.description
    assert source.description
    assert "\n" not in source.description


def test_every_known_source_is_registered() -> None:
    assert set(SOURCES) >= {"mnist5k", "digits", "parquet:", "hf:", "torchvision:", "folder:", "synthetic:"}


def test_one_line_adds_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(argument: str, settings: DataSettings) -> Listing:
        count = int(argument)
        return Listing(np.arange(count) % 2, ("even", "odd"), lambda rows: rows.astype(np.float32)[:, None])

    monkeypatch.setitem(SOURCES, "counted:", Source("counted:N, the numbers below N", counted))
    data = load_source(DataSettings(source="counted:6"))
    assert data.inputs[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert catalogue()["data sources (data.source)"]["counted:"] == "counted:N, the numbers below N"
    assert kind_of("counted:6") == "counted:"
