from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kdfed
from kdfed.data import Dataset
from simulations.experiments import build_experiment
from simulations.study import hashes
from simulations.study.hashes import code_sha256, data_sha256

OWN = "my_study_code"


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Forget what was hashed, before and after: here code and data change within a process."""
    hashes._code_sha256.cache_clear()
    data_sha256.cache_clear()
    yield
    hashes._code_sha256.cache_clear()
    data_sha256.cache_clear()


def named(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Write modules of a user's, and forget those that were loaded."""
    monkeypatch.syspath_prepend(str(folder))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    hashes._code_sha256.cache_clear()


def test_the_code_of_kdfed_is_hashed_file_by_file(monkeypatch, tmp_path):
    package = tmp_path / "kdfed"
    (package / "distill").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "distill" / "vanilla.py").write_text("a = 1\n")
    monkeypatch.setattr(kdfed, "__file__", str(package / "__init__.py"))
    found = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (package / "distill" / "vanilla.py").write_text(text)
        hashes._code_sha256.cache_clear()
        found.append(code_sha256([]))
    assert found[0] == found[2] != found[1]
    (package / "distill" / "vanilla.py").rename(package / "distill" / "other.py")
    hashes._code_sha256.cache_clear()
    assert code_sha256([]) not in found


def test_an_edit_of_named_code_gives_another_hash(monkeypatch, tmp_path):
    named(tmp_path, monkeypatch, **{OWN: "def model(): return 1\n"})
    before = code_sha256([f"{OWN}:model"])
    assert before != code_sha256([])
    named(tmp_path, monkeypatch, **{OWN: "def model(): return 2\n"})
    assert code_sha256([f"{OWN}:model"]) != before
    named(tmp_path, monkeypatch, **{OWN: "def model(): return 1\n"})
    assert code_sha256(iter([f"{OWN}:model", f"{OWN}:model"])) == before


def test_named_code_is_hashed_where_it_is_defined_too(monkeypatch, tmp_path):
    found = []
    for value in (1, 2):
        inner = {f"{OWN}_inner": f"def model(): return {value}\n"}
        named(tmp_path, monkeypatch, **{OWN: f"from {OWN}_inner import model\n"}, **inner)
        found.append(code_sha256([f"{OWN}:model"]))
    assert found[0] != found[1]


def test_code_without_a_file_is_no_error():
    assert code_sha256(["builtins:len"]) == code_sha256([])


@pytest.mark.parametrize("key", ["inputs", "labels", "official_test", "class_names"])
def test_other_data_give_another_hash(monkeypatch, key):
    same: dict[str, Any] = {
        "inputs": np.zeros((9000, 2), np.float32),
        "labels": np.zeros(9000, np.int64),
        "official_test": None,
        "class_names": ("a", "b"),
    }
    other = {
        "inputs": np.concatenate([same["inputs"][:-1], np.ones((1, 2), np.float32)]),
        "labels": np.arange(9000),
        "official_test": np.array([3]),
        "class_names": ("a", "c"),
    }
    settings = build_experiment({"name": "x", "arms": {"cold": {}}}).data

    def hashed(values: dict[str, Any]) -> str:
        data = SimpleNamespace(dataset=Dataset(**values))
        monkeypatch.setattr(hashes, "prepare", lambda asked: data)
        data_sha256.cache_clear()
        return data_sha256(settings)

    assert hashed(same) == hashed(dict(same)) != hashed({**same, key: other[key]})
