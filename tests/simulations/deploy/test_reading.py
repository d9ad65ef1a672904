"""The participants' file is read with every mistake at once; what kdfed wrote is read without PyTorch."""

from __future__ import annotations

import datetime

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clients.device_folder import read_node_file
from kdfed.config.document import DocumentError, parse
from kdfed.errors import ConfigError
from simulations.deploy.reading import read_deployment, read_plan, to_yaml
from tests.simulations.deploy.conftest import LOCAL, PLAN


def mistakes(error: pytest.ExceptionInfo[ConfigError]) -> dict[str, str]:
    return {mistake.key: mistake.message for mistake in error.value.mistakes}


def test_a_file_is_read(plan_file):
    plan = read_plan(plan_file())
    assert [one.name for one in plan.participants] == ["north", "south"]
    assert plan.superlink.address == "fl.example.org:42100"


def test_every_mistake_is_told_at_once(plan_file):
    rows = [
        {"name": "north", "data": "folder:images", "port": 8000},
        {"name": "North", "data": "m:f", "port": 8000, "threads": 0},
        {"data": "m:f", "colour": "red"},
        {"name": "superlink", "data": "m:f"},
    ]
    file = plan_file({"superlink": {"hosts": ["http://x"], "prt": 1}, "participants": rows})
    with pytest.raises(ConfigError) as error:
        read_plan(file)
    told = mistakes(error)
    assert set(told) == {
        "superlink.hosts",
        "superlink.prt",
        "participants.0.data",
        "participants.0.port",
        "participants.1.name",
        "participants.1.port",
        "participants.1.threads",
        "participants.2.name",
        "participants.2.colour",
        "participants.3.name",
    }
    assert told["superlink.prt"] == "unknown key; did you mean 'port'?"
    assert told["participants.1.name"].startswith("expected distinct names, also in lower case, got 'north'")


def test_without_tls_only_this_machine_is_served(plan_file):
    assert read_plan(plan_file(LOCAL), insecure=True).superlink.is_local
    with pytest.raises(ConfigError) as error:
        read_plan(plan_file(PLAN), insecure=True)
    assert [mistake.key for mistake in error.value.mistakes] == ["superlink.hosts"] * 2
    listening = {"hosts": ["localhost"], "listen": "0.0.0.0"}
    with pytest.raises(ConfigError, match="expected auto or a loopback address with --insecure"):
        read_plan(plan_file(PLAN, superlink=listening), insecure=True)


def test_what_was_written_is_read_back(deployed):
    folder = deployed()
    assert [one.name for one in read_deployment(folder).plan.participants] == ["north", "south"]
    device = read_node_file(folder / "devices" / "south")
    assert device.superlink == "fl.example.org:42100"
    assert device.node_config.threads == 2
    assert device.node_config.allowed == {"my_models:small"}


def test_mistakes_in_a_device_folder_are_told_with_a_near_match(deployed):
    file = deployed() / "devices" / "north" / "node.yaml"
    values = yaml.safe_load(file.read_text())
    values["prt"] = values.pop("port")
    values["node-config"] = {"data": "m:f", "thraeds": 2}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as error:
        read_node_file(file.parent)
    assert mistakes(error) == {
        "prt": "unknown key; did you mean 'port'?",
        "node-config.participant": "expected a value, got none",
        "node-config.thraeds": "unknown key; did you mean 'threads'?",
    }


@pytest.mark.parametrize("text", ["a: [", "\x00", "- 1", "null"])
def test_what_is_no_mapping_is_one_mistake(deployed, text):
    file = deployed() / "devices" / "north" / "node.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        read_node_file(file.parent)


WORDS = [
    "yes",
    "On",
    "null",
    "~",
    "020",
    "1:30",
    "1e-3",
    "2024-01-01",
    ".inf",
    "0x1F",
    "a: b",
    "# x",
    "",
    "=",
    "<<",
]


@given(st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["C"]))))
def test_both_readers_read_a_written_word_as_that_word(word):
    """An experiment's reader, and PyYAML's own, which a device uses."""
    text = to_yaml({"key": word})
    assert yaml.safe_load(text) == {"key": word}
    try:
        assert parse(text) == {"key": word}
    except DocumentError:
        assert not word.isprintable()


def test_a_plain_reader_would_read_some_of_these_words_as_something_else():
    assert yaml.safe_load("key: 2024-01-01") == {"key": datetime.date(2024, 1, 1)}


@pytest.mark.parametrize("text", ["plan: 2026-99-99\n", "[" * 3000])
def test_a_deployment_file_that_breaks_its_reader_is_a_mistake_like_any_other(tmp_path, text):
    (tmp_path / "deployment.yaml").write_text(text)
    with pytest.raises(ConfigError, match="expected YAML"):
        read_deployment(tmp_path)
