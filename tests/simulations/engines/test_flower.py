"""The ``flower`` engine: what it starts, what it reports, and that nothing is left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kdfed.errors import ConfigError, RunError
from kdfed.events import Event
from kdfed.records import Failure, RunFolder
from simulations.engines import flower, home

STUB = """
import json, os
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
app = ServerApp()

@app.main()
def main(grid, context):
    with open(os.environ["KDFED_PROGRESS"], "a") as file:
        event = {"arm": "cold", "seed": 0, "phase": "hello", "message": context.run_config["out"]}
        file.write(json.dumps(event) + "\\n")
    raise RuntimeError("only 1 of 3 participants answered")
"""


@pytest.fixture
def homes(monkeypatch):
    """The FLWR_HOMEs that were used; none may hold a process or a file afterwards."""
    used: list[Path] = []
    clear = home.clear

    def remember(folder):
        used.append(folder)
        clear(folder)

    monkeypatch.setattr(home, "clear", remember)
    yield used
    assert used
    for folder in used:
        assert home.processes(folder) == []
        assert not folder.exists()


@pytest.fixture
def folder(tmp_path, tiny):
    return RunFolder.open_for(tmp_path / "a run's folder", tiny())


def fake_commands(monkeypatch, folder, **scripts):
    """Let the engine find these shell scripts instead of Flower's commands."""
    folder.mkdir()
    for name, script in scripts.items():
        command = folder / name.replace("_", "-")
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
    monkeypatch.setattr(flower, "_commands", lambda: folder)


def kept_log(error):
    return Path(str(error.value).rsplit("Flower's log: ", 1)[1]).read_text()


def test_events_are_passed_on_once_and_half_a_line_waits_for_its_rest(tmp_path):
    seen: list[Event] = []
    failures: list[Failure] = []
    events = flower._Events(tmp_path / "events.jsonl", seen.append, failures)
    whole = json.dumps(Event("cold", 0, "rounds", 1, 3).to_json()) + "\n"
    alone = json.dumps(Event("cold", 0, "failed", message="a typo").to_json()) + "\n"
    failed = json.dumps(Event("", 0, "failed", message="too few answered").to_json()) + "\n"
    with events.path.open("a") as file:
        for part in (whole, alone, failed[:10], failed[10:]):
            file.write(part)
            file.flush()
            events.read()
    assert [event.phase for event in seen] == ["rounds", "failed", "failed"]
    assert failures == [Failure("cold", 0, "rounds", "a typo")]
    assert events.failure == "too few answered"
    assert events.ended


def test_the_superlink_is_isolated_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    environment = flower._environment(tmp_path, 2, tmp_path / "events.jsonl")
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_TELEMETRY_ENABLED"] == environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert environment["RAY_ADDRESS"] == "local"


def test_every_node_is_a_worker_also_where_there_are_fewer_cores(tiny):
    settings = flower._federation(tiny(), 64)
    assert "num-supernodes=64" in settings
    assert "init-args-num-cpus=64" in settings
    assert "client-resources-num-cpus=1 " in settings


def test_nodes_share_the_gpu_in_fractions_that_fit(tiny, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert "client-resources-num-gpus=0.1666 " in flower._federation(tiny(device="auto"), 6)
    assert "client-resources-num-gpus=0.0 " in flower._federation(tiny(device="cpu"), 6)


def test_a_superlink_that_does_not_start_is_an_error_that_quotes_its_log(
    homes, monkeypatch, folder, tiny, tmp_path
):
    fake_commands(monkeypatch, tmp_path / "bin", flower_superlink="echo no free port; exit 3", flwr="")
    with pytest.raises(RunError, match="SuperLink did not start: no free port") as error:
        flower.run(tiny(), folder, nodes=1, on_event=lambda event: None)
    assert "no free port" in kept_log(error)


def test_everything_that_is_missing_is_named_before_anything_starts(monkeypatch, tiny, tmp_path):
    fake_commands(monkeypatch, tmp_path / "bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 10)))
    monkeypatch.setattr(home, "USUAL", tmp_path / "absent")
    monkeypatch.setattr(home, "MOST_CHARACTERS", 1000)
    with pytest.raises(ConfigError) as error:
        flower.check(tiny(), nodes=1)
    for part in (
        "ray and psutil: install kdfed[sim]",
        "flower-superlink: is flwr installed",
        "TMPDIR: expected",
    ):
        assert part in str(error.value)


@pytest.mark.sim
def test_a_server_app_that_raises_fails_the_run_and_leaves_no_process(
    homes, monkeypatch, folder, tiny, tmp_path
):
    app = tmp_path / "app"
    app.mkdir()
    settings = (flower.APP / "pyproject.toml").read_text()
    settings = settings.replace("simulations.server_app:app", "stub_app:app")
    (app / "pyproject.toml").write_text(settings.replace("clients.client_app:app", "stub_app:client"))
    (app / "any.yaml").write_text("name: any\n")
    (tmp_path / "stub_app.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing on this machine goes through a proxy
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setattr(flower, "APP", app)
    seen: list[Event] = []
    with pytest.raises(RunError, match=r"finished:failed: .*only 1 of 3 participants answered") as error:
        flower.run(tiny(), folder, nodes=1, on_event=seen.append)
    assert "in main" in kept_log(error)
    assert [(event.phase, event.message) for event in seen] == [("hello", str(folder.path))]


@pytest.mark.sim
def test_flower_refuses_an_app_that_is_none(homes, monkeypatch, folder, tiny, tmp_path):
    monkeypatch.setattr(flower, "APP", tmp_path)
    with pytest.raises(RunError, match="Flower did not take the run") as error:
        flower.run(tiny(), folder, nodes=1, on_event=lambda event: None)
    kept_log(error)
