"""What Flower's commands print is read; what they refuse becomes one error."""

from __future__ import annotations

import json
import subprocess

import pytest

from kdfed.errors import RunError
from simulations.deploy import flower
from simulations.deploy.flower import Flower, KeyInUseError, Node, last_json

LISTED = [
    {"node-id": "11", "status": "online", "online-at": "2026-05-01 09:00:00Z", "offline-at": "N/A"},
    {
        "node-id": "22",
        "status": "offline",
        "online-at": "2026-05-01 09:00:00Z",
        "offline-at": "2026-05-01 10:00Z",
    },
    {"node-id": "33", "status": "registered", "online-at": "N/A", "offline-at": "N/A"},
]


@pytest.fixture
def answering(monkeypatch):
    """Return a function that says what Flower's command prints; it returns how it was called."""

    def say(stdout, stderr=""):
        calls = []

        def run(command, **keywords):
            calls.append((command[1:], keywords["env"].get("FLWR_HOME")))
            return subprocess.CompletedProcess(command, 0, stdout, stderr)

        monkeypatch.setattr(flower.subprocess, "run", run)
        return calls

    return say


def test_nodes_are_listed(answering, tmp_path):
    calls = answering("Listing...\n" + json.dumps({"success": True, "nodes": LISTED}))
    assert Flower("kdfed", tmp_path).nodes() == [
        Node("11", "online", "now"),
        Node("22", "offline", "2026-05-01 10:00Z"),
        Node("33", "registered", ""),
    ]
    assert calls == [(["supernode", "list", "kdfed", "--format", "json"], str(tmp_path))]


def test_a_key_is_registered(answering, tmp_path):
    calls = answering(json.dumps({"success": True, "node-id": 2**64 - 1}))
    assert Flower("kdfed", tmp_path).register(tmp_path / "key.pub") == str(2**64 - 1)
    assert calls[0][0] == ["supernode", "register", str(tmp_path / "key.pub"), "kdfed", "--format", "json"]


def refusal(message):
    return json.dumps({"success": False, "error-message": f"Using SuperLink: kdfed (x:1)\n\n{message}"})


def test_a_key_that_is_registered_already_is_an_error_of_its_own(answering, tmp_path):
    answering(refusal("[code: 23] Public key already in use."))
    with pytest.raises(KeyInUseError):
        Flower("kdfed").register(tmp_path / "key.pub")


@pytest.mark.parametrize(
    ("stdout", "stderr", "said"),
    [
        (
            refusal("Connection to the SuperLink is unavailable."),
            "",
            "Connection to the SuperLink is unavailable",
        ),
        ("", "", "it gave no reason"),
        ("", "no such command", "no such command"),
        ("{broken", "", "{broken"),
    ],
)
def test_everything_else_is_told(answering, stdout, stderr, said):
    answering(stdout, stderr)
    with pytest.raises(RunError) as error:
        Flower("kdfed").nodes()
    assert said in str(error.value)
    assert "Using SuperLink" not in str(error.value)


def test_json_is_found_behind_other_lines():
    assert last_json('a {b}\n{"c": {"d": 1}}\n') == {"c": {"d": 1}}
    assert last_json("") == last_json("[1]") == last_json("{") == {}
