"""Each page's file, experiment and commands do what the page says, word for word, from an empty folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from kdfed.config import read_recorded
from tests.own.pages import PAGES, ROOT, Page, imports_undone, in_a_process, kdfed, weights

FolderOf = Callable[[str], Path]

WITHOUT = {
    "partition": ["partition={kind: uniform, participants: 4}"],
    "data-source": ["data={source: digits, limit: 569}"],
    "listener": ["arms.thrifty.listeners=[]"],
}
"""Of what no arm can replace, and of a single arm: what the experiment has without it."""


def test_there_is_a_page_for_every_family() -> None:
    from simulations.experiments import FAMILIES

    index = (ROOT / "docs" / "own" / "index.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"`{family.key}` | a class derived from `" in index
        base = index.partition(f"`{family.key}` | a class derived from `")[2].partition("`")[0]
        module, _, name = base.rpartition(".")
        assert getattr(__import__(module, fromlist=[name]), name) is family.base
    assert [page for page in PAGES if f"]({page}.md)" not in index] == []
    assert len(PAGES) == len(list(FAMILIES)) + 3  # data sources, models and listeners


def test_the_code_of_the_page_changes_the_result(
    page: Page, ran: Callable[[str], Path], folder: Path
) -> None:
    """Every arm gives weights of its own; with a single one, the experiment without it does."""
    found = weights(ran(page.name))
    if page.name in WITHOUT:
        assert kdfed(folder, [*page.commands[0], "--out", "without", "--set", *WITHOUT[page.name]]) == 0
        (found["without"],) = weights(folder / "without").values()
    assert len(found) > 1
    assert len(set(found.values())) == len(found)


def test_the_same_twice_gives_the_same(page: Page, ran: Callable[[str], Path], folder: Path) -> None:
    assert kdfed(folder, [*page.commands[0], "--out", "again"]) == 0
    assert weights(folder / "again") == weights(ran(page.name))


def test_other_commands_of_the_page_work(page: Page, folder: Path) -> None:
    for words in page.commands[1:]:
        if "ray" not in words:
            assert kdfed(folder, words) == 0


def test_what_is_refused_prints_what_the_page_says(
    page: Page, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kdfed(folder, page.refused) == 2
    assert capsys.readouterr().err.split() == page.error.split()
    assert not (folder / "runs").exists()


def test_without_its_file_an_experiment_is_refused(
    page: Page, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / f"{page.module}.py").unlink()
    assert kdfed(folder, page.commands[0]) == 2
    error = capsys.readouterr().err
    assert f"No module named '{page.module}'" in error
    assert error.startswith("error: experiment.yaml: 1 mistake\n")


def test_records_are_read_without_anybodys_code(page: Page, ran: Callable[[str], Path]) -> None:
    recorded = ran(page.name) / "experiment.yaml"
    assert f"{page.module}:" in recorded.read_text()
    with imports_undone():
        assert read_recorded(recorded).name == f"own-{page.name}"
        assert page.module not in sys.modules


def _reports(page: Page, run: Path) -> None:
    assert kdfed(run.parents[1], ["kdfed", "report", f"runs/{run.name}"]) == 0
    assert (run / "report.html").exists()


def test_a_report_is_made_after_the_file_was_deleted(pages: dict[str, Page], folder_of: FolderOf) -> None:
    folder = folder_of("ensemble")
    (folder / "my_ensemble.py").unlink()
    _reports(pages["ensemble"], folder / "runs" / "own-ensemble")


@pytest.mark.slow
def test_a_report_is_made_though_the_file_would_raise(page: Page, folder_of: FolderOf) -> None:
    folder = folder_of(page.name)
    (folder / f"{page.module}.py").write_text("raise RuntimeError('imported for a report')\n")
    _reports(page, folder / "runs" / f"own-{page.name}")


def test_forward_one_of_the_page_on_methods_is_vanilla_kd(pages: dict[str, Page], tmp_path: Path) -> None:
    pages["kd-method"].write(tmp_path)
    words = [
        *pages["kd-method"].commands[0],
        "--set",
        "arms.blend.consolidation.forward=1.0",
        "rounds.horizon=0",
    ]
    assert kdfed(tmp_path, words) == 0
    models = tmp_path / "runs" / "own-kd-method" / "models"
    vanilla, blend = (load_file(models / f"{arm}-0.safetensors") for arm in ("vanilla", "blend"))
    for key, value in vanilla.items():
        assert abs(value - blend[key]).max() < 1e-3


def test_the_mixed_set_takes_twice_as_many_steps(ran: Callable[[str], Path]) -> None:
    summary = json.loads((ran("transfer-set") / "summary.json").read_text())
    steps = {entry["arm"]: entry["steps"] for entry in summary["consolidations"]}
    assert steps["mixed"] == pytest.approx(2 * steps["public"], rel=0.2)  # whole batches


# ----------------------------------------------------------------------------- processes


def _alone(page: Page, folder: Path, run: Path) -> None:
    done = in_a_process(folder, page.commands[0])
    assert done.returncode == 0, done.stderr
    assert weights(folder / "runs" / run.name) == weights(run)


@pytest.mark.slow
def test_the_command_of_a_page_runs_from_an_empty_folder(
    pages: dict[str, Page], ran: Callable[[str], Path], tmp_path: Path
) -> None:
    pages["kd-method"].write(tmp_path)
    _alone(pages["kd-method"], tmp_path, ran("kd-method"))


@pytest.mark.slow
def test_the_command_of_every_page_runs_from_an_empty_folder(
    page: Page, ran: Callable[[str], Path], folder: Path
) -> None:
    _alone(page, folder, ran(page.name))


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "flower"])
@pytest.mark.parametrize("name", ["local-mode", "model"])
def test_simulated_workers_find_the_file(
    pages: dict[str, Page], ran: Callable[[str], Path], tmp_path: Path, name: str, engine: str
) -> None:
    pages[name].write(tmp_path)
    words = ["kdfed", "run", "experiment.yaml", "--engine", engine, "--nodes", "2"]
    if (name, engine) == ("local-mode", "ray"):
        assert words in pages[name].commands
    done = in_a_process(tmp_path, words)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "runs" / f"own-{name}") == weights(ran(name))
