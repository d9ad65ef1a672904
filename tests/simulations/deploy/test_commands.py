"""The words and exit codes of ``kdfed deploy``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.cli import main
from simulations.deploy import registering
from simulations.deploy.checking import folders
from simulations.deploy.checking.findings import fine, note, wrong
from simulations.deploy.flower import Flower, Node
from tests.simulations.deploy.conftest import LOCAL, PLAN

ROOT = Path(__file__).parents[3]


def test_init_writes_and_says_where_to_read_on(plan_file, tmp_path, capsys):
    words = ["deploy", "init", str(tmp_path / "d"), "--participants", str(plan_file())]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "written: north" in said
    assert f"what to run where: {tmp_path}/d/README.md" in said
    assert main(words) == 0
    assert "kept: north\nkept: south\nnothing is new" in capsys.readouterr().out


def test_insecure_is_for_loopback_alone(plan_file, tmp_path, capsys):
    words = ["deploy", "init", str(tmp_path / "d"), "--insecure", "--participants"]
    assert main([*words, str(plan_file(PLAN))]) == 2
    assert "expected loopback hosts alone with --insecure" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert main([*words, str(plan_file(LOCAL))]) == 0


def test_a_wrong_file_writes_nothing(plan_file, tmp_path, capsys):
    assert (
        main(["deploy", "init", str(tmp_path / "d"), "--participants", str(plan_file({"install": "/x"}))])
        == 2
    )
    assert "2 mistakes" in capsys.readouterr().err
    assert main(["deploy", "init", str(tmp_path / "d"), "--participants", str(tmp_path / "absent")]) == 2
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("has_wrong", [False, True])
def test_check_tells_what_is_wrong_and_ends_with_it(monkeypatch, tmp_path, capsys, has_wrong):
    found = [fine("a", "good"), note("b", "look\x1b[2J"), *([wrong("c", "bad")] if has_wrong else [])]
    monkeypatch.setattr(folders, "check", lambda folder: found)
    assert main(["deploy", "check", str(tmp_path)]) == int(has_wrong)
    said = capsys.readouterr().out
    assert ("wrong  c: bad" in said) == has_wrong
    assert "good" not in said
    assert "\x1b" not in said
    assert f"{int(has_wrong)} wrong, 1 to note, 1 fine" in said
    main(["deploy", "check", str(tmp_path), "--verbose"])
    assert "fine   a: good" in capsys.readouterr().out


def test_check_of_something_else_is_wrong_input(tmp_path):
    assert main(["deploy", "check", str(tmp_path)]) == 2


def test_status_shows_participants_and_what_a_run_knows(deployed, monkeypatch, tmp_path, capsys):
    folder = deployed()
    (folder / "operator" / "nodes.json").write_text('{"north": "11"}')
    (tmp_path / "roster.json").write_text(json.dumps({"participants": [{"name": "north", "examples": 120}]}))
    monkeypatch.setattr(Flower, "nodes", lambda self: [Node("11", "online", "now")])
    assert main(["deploy", "status", str(folder), "--run", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.strip().startswith("north"))
    assert row.split() == ["north", "online", "now", "120", "11"]
    assert "1 of 2 participants online" in said


def test_status_of_a_connection_needs_no_folder(monkeypatch, capsys):
    monkeypatch.setattr(Flower, "nodes", lambda self: [Node("11", "online", "now")])
    assert main(["deploy", "status", "my-superlink"]) == 0
    assert "1 node of which nobody knows whose" in capsys.readouterr().out


def test_status_of_a_folder_that_is_no_deployment_is_wrong_input(tmp_path):
    assert main(["deploy", "status", str(tmp_path)]) == 2


def test_register_says_who_and_renew_says_what_to_copy(deployed, monkeypatch, capsys):
    folder = deployed()
    done = registering.Registered(("north",), (), ("south",))
    monkeypatch.setattr(registering, "register", lambda folder, tell: tell("north", "11") or done)
    assert main(["deploy", "register", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "registered: north as node 11" in said
    assert "south: its key was registered by another command" in said
    assert "1 registered now, 1 before" in said
    assert main(["deploy", "renew", str(folder)]) == 0
    assert str(folder / "superlink" / "server.crt") in capsys.readouterr().out


def test_check_starts_where_neither_the_simulations_packages_nor_pytorch_can_be_imported(deployed):
    """PyTorch is imported in a process of its own, where it may break."""
    code = (
        "import sys\n"
        "names = 'torch ray matplotlib torchvision datasets sklearn psutil jinja2'\n"
        "for name in names.split():\n"
        "    sys.modules[name] = None\n"
        "from simulations.cli import main\n"
        "sys.exit(main(['deploy', 'check', sys.argv[1], '--verbose']))\n"
    )
    folder = deployed(LOCAL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "superlink")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert "torch imports" in done.stdout
