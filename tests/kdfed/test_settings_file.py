"""A file of settings is read with every mistake at once, told in the same words wherever it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from kdfed.errors import ConfigError
from kdfed.settings import PositiveInt, Settings, Text
from kdfed.settings_file import read_settings


class Inner(Settings):
    """One of several."""

    name: Text
    threads: PositiveInt = 1


class Outer(Settings):
    """A file."""

    first: Inner
    more_of_them: tuple[Inner, ...] = Field(default=())
    colour: Text = "red"


def told(file: Path, text: str) -> dict[str, str]:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(file, Outer)
    assert caught.value.source == str(file)
    return {mistake.key: mistake.message for mistake in caught.value.mistakes}


def test_what_is_right_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("first: {name: a}\nmore-of-them: [{name: b, threads: 2}]\n")
    found = read_settings(tmp_path / "a.yaml", Outer)
    assert (found.first.name, found.more_of_them[0].threads) == ("a", 2)


def test_every_mistake_is_told_with_the_nearest_key_of_its_section(tmp_path: Path) -> None:
    text = "first: {nam: a, threads: 0}\nmore-of-them: [{name: b, thread: 2}]\ncolor: blue\n"
    found = told(tmp_path / "a.yaml", text)
    assert found == {
        "first.name": "expected a value, got none",
        "first.nam": "unknown key; did you mean 'name'?",
        "first.threads": found["first.threads"],
        "more-of-them.0.thread": "unknown key; did you mean 'threads'?",
        "color": "unknown key; did you mean 'colour'?",
    }
    assert found["first.threads"].endswith("got 0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "expected YAML: "),
        ("first: 2026-99-99\n", "expected YAML: "),
        ("[" * 3000, "expected YAML: "),
        ("- 1", "expected a mapping of keys, got list"),
        ("", "expected a mapping of keys, got NoneType"),
    ],
)
def test_what_is_no_mapping_is_one_mistake(tmp_path: Path, text: str, said: str) -> None:
    (message,) = told(tmp_path / "a.yaml", text).values()
    assert message.startswith(said)


def test_a_file_that_is_not_there_is_one_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file that can be read: No such file or directory"):
        read_settings(tmp_path / "a.yaml", Outer)
