"""Paths that people write, where there is no home folder."""

from __future__ import annotations

import os
import pwd

import pytest

from kdfed.errors import DataError
from kdfed.paths import models_in, user_path
from kdfed.preflight import check_data


@pytest.fixture
def homeless(monkeypatch):
    """As in a container: HOME is not set, and the user is not in the password database."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_a_path_without_a_tilde_needs_no_home(homeless):
    assert str(user_path("data/x")) == "data/x"


def test_a_tilde_without_a_home_says_what_to_write(homeless):
    with pytest.raises(DataError, match=r"home folder for the ~ in '~/data'.*set HOME"):
        user_path("~/data")


@pytest.mark.parametrize("source", ["parquet:~/x", "folder:~/x", "hf:~/x", "torchvision:MNIST"])
def test_a_source_below_a_home_that_is_not_there_is_a_mistake_of_the_experiment(homeless, tiny, source):
    (mistake,) = {one for one in check_data(tiny(data__source=source)) if one.key == "data.source"}
    assert "expected a home folder" in mistake.message


@pytest.mark.parametrize(
    ("text", "why"), [("", "it is empty"), ("x" * 300, "too long"), ("a\0b", "null"), ("\ud800", "surrogate")]
)
def test_a_path_that_nothing_can_have_is_an_error(text, why):
    with pytest.raises(DataError, match=rf"expected a path, got .*{why}.*; correct it"):
        user_path(text)


def test_a_path_that_leads_nowhere_or_in_a_circle_is_one(tmp_path):
    os.symlink("circle", tmp_path / "circle")
    for path in (tmp_path / "nothing" / "here", tmp_path / "circle"):
        assert user_path(path) == path


def test_models_in_a_folder_are_those_that_nobody_hides(tmp_path):
    for name in ("b.pt", "a.safetensors", "._a.safetensors", ".hidden.pt", "notes.md", "c.pth"):
        (tmp_path / name).touch()
    assert [path.name for path in models_in(tmp_path)] == ["a.safetensors", "b.pt", "c.pth"]
