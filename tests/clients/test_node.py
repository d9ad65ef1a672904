"""Becoming a node: its variables, its command, and what it falls back to."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients import node
from clients.device_folder import DeviceFolder
from clients.node_config import NodeConfig
from kdfed.errors import ConfigError, RunError


def settings(threads: int = 1) -> DeviceFolder:
    own = NodeConfig(participant="north", data="folder:images", threads=threads)
    return DeviceFolder(superlink="server:8000", insecure=True, node_config=own)


def test_its_libraries_get_as_many_threads_as_it_says_and_it_talks_to_nobody_else() -> None:
    given = {"PATH": "/bin", "OMP_NUM_THREADS": "7"}
    variables = node.environment_of(settings(threads=2), Path("/f"), given)
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["FLWR_HOME"] == "/f/.flwr"
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]


def test_what_the_user_has_set_stays() -> None:
    given = {"FLWR_HOME": "/elsewhere", "FLWR_TELEMETRY_ENABLED": "1", "MALLOC_ARENA_MAX": "8"}
    variables = node.environment_of(settings(), Path("/f"), given)
    assert {key: variables[key] for key in given} == given


def device(folder: Path, port: int) -> Path:
    (folder / "images").mkdir()
    values = {
        "superlink": "127.0.0.1:1",
        "insecure": True,
        "port": port,
        "node-config": {"participant": "north", "data": "folder:images"},
    }
    (folder / "node.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_the_command_becomes_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *words: became.extend(words))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node.become_node(device(tmp_path, port))
    program, words, variables = became
    assert program == sys.executable
    assert words == [sys.executable, "-P", "-m", "clients.node", str(tmp_path)]
    assert variables["FLWR_HOME"] == str(tmp_path / ".flwr")


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"port: expected a port of 127\.0\.0\.1 .* got {port}: .*in use"
        ):
            node.become_node(device(tmp_path, port))


def test_windows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.os, "name", "nt")
    with pytest.raises(RunError, match="expected Linux or macOS"):
        node.become_node(tmp_path)


@pytest.mark.parametrize(
    ("platform", "release", "said"),
    [
        ("linux", "1.42", ""),
        ("linux", None, "was tried with flwr 1.41 and 1.42 alone, and this is "),
        ("darwin", "1.42", "safe on Linux alone, and this is darwin"),
    ],
)
def test_clients_are_forked_where_that_is_known_to_work(
    platform: str, release: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.sys, "platform", platform)
    monkeypatch.setattr(node, "warm_release", lambda: release)
    found = node.why_not_warm()
    assert (said in found) if said else found == ""


def test_news_arrives_in_pieces() -> None:
    news = node._News.pipe()
    try:
        assert not news.read()
        os.write(news.writing, b"\n\n")
        assert news.read()
        os.write(news.writing, b"the SuperLink ")
        assert not news.read()
        os.write(news.writing, b"refused it\n")
        assert not news.read()
        assert news.last == "the SuperLink refused it"
    finally:
        os.close(news.reading)
        os.close(news.writing)
