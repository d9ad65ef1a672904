"""Where a name of one's own is looked for, and what is refused there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from flwr.app import ConfigRecord, Context, RecordDict

from clients.actors import IN_PROCESS
from clients.names import check_names
from kdfed.errors import ParticipantError
from kdfed.messages import CONFIG, SIMULATION
from kdfed.named import NamedError
from kdfed.records import RunFolder
from simulations.engines import flower
from simulations.experiments import build_experiment
from tests.own.pages import PAGES, Page, imports_undone, in_a_process, kdfed, weights
from tests.setups import A_SIMULATION


def _named(page: Page, folder: Path, module: str, name: str) -> list[str]:
    """Write the page's files with its module under another name; return the command."""
    text = page.files["experiment.yaml"].replace(f"{page.module}:", f"{module}:")
    (folder / "experiment.yaml").write_text(text)
    (folder / name).write_text(page.files[f"{page.module}.py"])
    return ["kdfed", "run", "experiment.yaml", "--engine", "inprocess"]


@pytest.mark.parametrize(
    ("name", "module"),
    [*((name, "yaml") for name in PAGES), ("model", "torch"), ("model", "statistics"), ("model", "sys")],
)
def test_a_file_of_the_name_of_an_installed_module_is_refused(
    pages: dict[str, Page], tmp_path: Path, name: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = pages[name]
    words = _named(page, tmp_path, module, f"{module}.py")
    assert kdfed(tmp_path, words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: experiment.yaml: 1 mistake\n")
    assert error.count("which is found first; rename the file") == 1
    assert f"{tmp_path / f'{module}.py'}" in error


def test_a_package_beside_the_experiment_is_found(pages: dict[str, Page], tmp_path: Path) -> None:
    (tmp_path / "my_parts").mkdir()
    words = _named(pages["ensemble"], tmp_path, "my_parts.mine", "my_parts/mine.py")
    assert kdfed(tmp_path, [*words, "--set", "rounds.horizon=0"]) == 0


@pytest.mark.slow
def test_an_installed_package_is_found(pages: dict[str, Page], tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    (site / "installed_parts").mkdir(parents=True)
    here.mkdir()
    (site / "installed_parts" / "__init__.py").touch()
    words = _named(pages["ensemble"], here, "installed_parts.mine", "unused.py")
    (here / "unused.py").rename(site / "installed_parts" / "mine.py")
    done = in_a_process(here, words, path=[site])
    assert done.returncode == 0, done.stderr
    assert in_a_process(here, [*words, "--out", "again"]).returncode == 2


@pytest.mark.sim
@pytest.mark.slow
def test_a_module_of_a_users_own_flower_app_is_found(
    pages: dict[str, Page], ran: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On server and workers, from the bundle alone: the experiment stands elsewhere."""
    app = tmp_path / "app"
    app.mkdir()
    pages["local-mode"].write(app)
    settings = (flower.APP / "pyproject.toml").read_text()
    assert 'fab-include = ["*.yaml"]' in settings
    (app / "pyproject.toml").write_text(settings.replace('["*.yaml"]', '["*.yaml", "*.py"]'))
    monkeypatch.setattr(flower, "APP", app)
    with imports_undone():
        sys.path.append(str(app))  # of this process alone
        experiment = build_experiment(yaml.safe_load(pages["local-mode"].files["experiment.yaml"]))
        assert experiment.folder is None
        folder = RunFolder.open_for(tmp_path / "run", experiment)
        flower.run(experiment, folder, nodes=2, on_event=lambda event: None)
    assert weights(tmp_path / "run") == weights(ran("local-mode"))


@pytest.mark.parametrize("record", ["local", "teachers", "model", "data", "partition"])
def test_a_message_names_nothing_but_what_its_experiment_names(record: str, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "my_payload.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    settings = {
        "local": {"mode": "my_payload:Mode"},
        "teachers": {"model": {"name": "my_payload:net"}},
        "model": {"name": "my_payload:net"},
        "data": {"source": "my_payload:read"},
        "partition": {"kind": "my_payload:Kind"},
    }[record]
    (name,) = (value for value in json.dumps(settings).split('"') if value.startswith("my_payload:"))
    context = Context(1, 1001, {IN_PROCESS: True}, RecordDict(), {})

    def content(*names: str) -> RecordDict:
        simulation = replace(A_SIMULATION, names=names, folder=tmp_path)
        return RecordDict(
            {
                SIMULATION: simulation.to_record(),
                CONFIG: ConfigRecord({record: json.dumps(settings)}),
            }
        )

    with imports_undone():
        with pytest.raises(ParticipantError, match="or one that the experiment names, got 'my_payload:"):
            check_names(content("my_payload:other"), context)
        assert not mark.exists()
        assert "my_payload" not in sys.modules
        if record in ("local", "partition"):  # its class says which of its keys name a model
            with pytest.raises(NamedError, match="module 'my_payload' has no attribute"):
                check_names(content(name), context)
            return
        check_names(content(name), context)
    assert not mark.exists()
