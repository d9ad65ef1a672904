"""Backbones that tests name, and a way to ask for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from kdfed.backbones import BackboneSettings, cut


@pytest.fixture(autouse=True)
def _own_backbones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    spec = spec_from_file_location("own_backbones", Path(__file__).with_name("own_backbones.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_backbones", module)
    spec.loader.exec_module(module)
    cut._split.cache_clear()
    yield
    cut._split.cache_clear()


@pytest.fixture
def tiny() -> Callable[..., BackboneSettings]:
    """Return a function that makes the settings of a tiny backbone, with some keys replaced."""

    def settings(**changes: Any) -> BackboneSettings:
        return BackboneSettings(**{"backbone": "own_backbones:Tiny", **changes})

    return settings
