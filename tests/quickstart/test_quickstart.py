"""An app in the shape of Flower's quickstart for PyTorch, before and after the diff of the docs.

``app/`` was written for these tests. The images are drawn: classes differ by a coarse pattern under noise.
They lie in a folder ``uoft-cs/cifar10``, where ``load_dataset`` looks first: nothing is patched.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from simulations.engines import flower
from simulations.engines.home import temporary_home
from simulations.engines.inprocess import InProcessGrid
from strategies.pre_consolidation import PreConsolidation
from strategies.result import ArmResult

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "pre-consolidation.md"
NODES = 10
MOST_LINES = 15


def documented_diff() -> str:
    """Return the diff that the page shows."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return str(diff)


def stock(folder: Path) -> Path:
    """Copy the app into a folder."""
    return Path(shutil.copytree(HERE / "app", folder, ignore=shutil.ignore_patterns("__pycache__")))


def consolidated(folder: Path) -> Path:
    """Copy the app into a folder, and change it as the page says."""
    stock(folder)
    command = ["git", "apply", "--unsafe-paths", f"--directory={folder}", "-"]
    done = subprocess.run(command, input=documented_diff(), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def draw_images(folder: Path) -> None:
    """Write images of ten classes where the app looks for CIFAR-10."""
    generator = np.random.default_rng(0)
    patterns = generator.uniform(90, 165, (10, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in range(10)])}
    )
    for split, count in (("train", 700), ("test", 1200)):
        labels = generator.integers(0, 10, count)
        noise = generator.normal(0, 70, (count, 32, 32, 3))
        images = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        table = datasets.Dataset.from_dict({"img": list(images), "label": labels}, features=features)
        place = folder / "uoft-cs" / "cifar10" / f"{split}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(place)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, which is the current one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    draw_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that runs an app in this process, and returns what its strategy returned."""
    torch.set_num_threads(1)
    results: list[Any] = []
    for kind in (Strategy, PreConsolidation):

        def start(self: Any, *given: Any, real: Any = kind.start, **more: Any) -> Any:
            results.append(real(self, *given, **more))
            return results[-1]

        monkeypatch.setattr(kind, "start", start)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "pytorchexample"]:
            del sys.modules[name]

    def run(app: Path, **changes: Any) -> Any:
        forget()
        monkeypatch.setattr(sys, "path", [str(app), *sys.path])
        importlib.invalidate_caches()
        settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
        config = {**settings["tool"]["flwr"]["app"]["config"], **changes}
        client, server = (
            importlib.import_module(f"pytorchexample.{name}_app").app for name in ("client", "server")
        )
        grid: Grid = InProcessGrid(client, NODES)
        for context in grid._contexts.values():  # type: ignore[attr-defined]
            context.run_config.update(config)
        torch.manual_seed(0)
        server(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config))
        return results[-1]

    yield run
    forget()


def changed_lines(before: Path, after: Path) -> int:
    """Count as a user does: a changed line once, an added or removed line once."""
    count = 0
    for file in sorted(
        path.relative_to(after) for path in after.rglob("*") if path.suffix in (".py", ".toml")
    ):
        old, new = ((folder / file).read_text(encoding="utf-8").splitlines() for folder in (before, after))
        for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            count += max(j - i, m - k) if kind != "equal" else 0
    return count


def test_the_diff_of_the_page_changes_at_most_15_lines(tmp_path: Path) -> None:
    before, after = stock(tmp_path / "before"), consolidated(tmp_path / "after")
    assert 5 < changed_lines(before, after) <= MOST_LINES
    added = [line for line in documented_diff().splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
    assert len(added) <= MOST_LINES + 2  # two lines are changed: each stands there twice


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:dill")
def test_the_changed_app_starts_higher_than_the_stock_one(
    run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO)
    cold = run(stock(tmp_path / "before"), **{"num-server-rounds": 1})
    assert type(cold) is not ArmResult
    assert (tmp_path / "final_model.pt").exists()
    warm = run(consolidated(tmp_path / "after"), **{"num-server-rounds": 1})
    assert type(warm) is ArmResult
    first = [result.evaluate_metrics_serverapp[0]["accuracy"] for result in (cold, warm)]
    assert first[1] > first[0] + 0.3
    assert warm.consolidation.accuracy >= warm.consolidation.ensemble_accuracy - 0.05
    assert [record.answered for record in warm.records] == [NODES, NODES]
    assert "eval_acc" in warm.evaluate_metrics_clientapp[1]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.sim
@pytest.mark.slow
def test_the_changed_app_runs_by_flwr_run(place: Path) -> None:
    app = consolidated(place / "after")
    with temporary_home() as home:
        environment = {
            **flower._environment(home, 1, home / "events.jsonl"),
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(place / "hf"),
            "HF_HUB_OFFLINE": "1",
        }
        address = f"127.0.0.1:{flower._free_port()}"
        with flower._superlink(home, address, environment):
            command = [str(Path(sys.executable).parent / "flwr"), "run", str(app), "local", "--stream"]
            command += ["--run-config", "num-server-rounds=1"]
            command += [
                "--federation-config",
                f"num-supernodes={NODES} client-resources-num-cpus=1 init-args-num-cpus=2",
            ]
            done = subprocess.run(
                command, env=environment, cwd=place, capture_output=True, text=True, timeout=280
            )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    for line in (
        "Starting PreConsolidation strategy",
        "[TEACHERS]",
        "10 teachers into one student",
        "[ROUND 1/1]",
    ):
        assert line in text, text[-5000:]
    assert (place / "final_model.pt").exists(), text[-3000:]
