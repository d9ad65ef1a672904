"""The SuperNode's command line, and why it ended."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from clients.device_folder import DeviceFolder
from clients.node_config import NodeConfig
from clients.supernode import arguments, explained, node_config_text

AWKWARD = [
    "plain",
    "with spaces and = signs",
    'a "quoted" name',
    "back\\slash and 'single'",
    "tab\tand line\nbreak",
    "ünïcode 名",
    "ends with .toml",
    "#no comment",
]


def read_by_flower(text: str) -> dict[str, Any]:
    found: dict[str, Any] = import_module("flwr." + "common.config").parse_config_args([text])
    return found


def test_flower_reads_what_was_meant() -> None:
    values = {"participant": "north", "threads": 2, **{f"k{i}": text for i, text in enumerate(AWKWARD)}}
    assert read_by_flower(node_config_text(values)) == values


def settings(**keys: Any) -> DeviceFolder:
    own = NodeConfig(participant="north", data="folder:/d/my images", allow="a.b:c", threads=2)
    return DeviceFolder(superlink="server:8000", node_config=own, **keys)


def test_the_flags_come_from_the_folder() -> None:
    words = arguments(settings(port=9100).found_in(Path("/f")), "process")
    assert words[:-2] == [
        "--superlink", "server:8000", "--host", "127.0.0.1", "--port", "9100", "--isolation", "process",
        "--root-certificates", "/f/ca.crt", "--auth-supernode-private-key", "/f/key",
    ]  # fmt: skip
    assert words[-2] == "--node-config"
    assert read_by_flower(words[-1]) == {
        "participant": "north",
        "data": "folder:/d/my images",
        "device": "auto",
        "threads": 2,
        "allow": "a.b:c",
    }


def test_without_tls_there_is_neither_certificate_nor_key() -> None:
    words = arguments(settings(insecure=True).found_in(Path("/f")), "subprocess")
    assert "--insecure" in words
    assert not {"--root-certificates", "--auth-supernode-private-key"} & {*words}
    assert words[words.index("--isolation") + 1] == "subprocess"


def test_flower_takes_these_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = import_module("flwr." + "supernode.cli.flower_supernode")._parse_args_run_supernode()
    for insecure in (True, False):
        read = parser.parse_args(arguments(settings(insecure=insecure).found_in(Path("/f")), "process"))
        assert (read.isolation, read.insecure, read.port) == ("process", insecure, 9094)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        (
            "Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
            "[code: 2004] Failed to activate SuperNode.\n\nFor more information, visit: <https://x>",
            "wait 60 s",
        ),
        ("Exit Code: 302\nUnable to parse the private key file.", "no private key of the curve P-384"),
        ("something else", "something else"),
    ],
)
def test_an_end_is_explained(said: str, meaning: str) -> None:
    assert meaning in explained(said)
    assert "For more information" not in explained(said)
    assert "\n" not in explained(said)
