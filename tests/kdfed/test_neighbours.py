"""An app with a package called as one of ours: what it lacks is found in ours, and nothing is mixed up."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdfed import neighbours
from kdfed.neighbours import NAMES, Neighbours


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with packages that stand for ours, found by nothing but the finder."""
    root, hidden = tmp_path / "ours", {}
    write(root / "strategies", __init__="", arm="", pre="from strategies.arm import __name__ as name")
    write(root / "strategies" / "engines", __init__="", ray="value = 3")
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        hidden[name] = sys.modules.pop(name)
    others = [finder for finder in sys.meta_path if not isinstance(finder, Neighbours)]
    monkeypatch.setattr(sys, "meta_path", [*others, Neighbours(root)])
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]
    sys.modules.update(hidden)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an app with a package of its own, at the front of the path as Flower has it."""
    write(tmp_path / "app" / "strategies", __init__="", mine="value = 1")
    monkeypatch.syspath_prepend(tmp_path / "app")
    return tmp_path / "app"


def test_what_the_apps_package_lacks_is_found_in_ours(ours: Path, app: Path) -> None:
    assert importlib.import_module("strategies.mine").value == 1
    assert importlib.import_module("strategies.pre").name == "strategies.arm"
    assert importlib.import_module("strategies.engines.ray").value == 3
    assert Path(str(sys.modules["strategies"].__file__)).is_relative_to(app)
    assert Path(str(sys.modules["strategies.arm"].__file__)).is_relative_to(ours)


def test_what_neither_has_is_missing_as_ever(ours: Path, app: Path) -> None:
    for name in ("strategies.nothing", "strategies.engines.nothing", "strategies.mine.nothing", "clients_"):
        with pytest.raises(ModuleNotFoundError, match="No module named"):
            importlib.import_module(name)


def test_modules_of_one_name_in_both_are_refused_as_soon_as_ours_are_needed(ours: Path, app: Path) -> None:
    write(app / "strategies", arm="value = 2")
    write(app / "strategies" / "engines", __init__="")
    assert importlib.import_module("strategies.arm").value == 2
    with pytest.raises(
        ImportError, match=r"package 'strategies' to have no module .* got arm, engines in .*: rename the"
    ):
        importlib.import_module("strategies.pre")


def test_there_is_one_finder_and_it_comes_last() -> None:
    neighbours.find_neighbours()
    found = [finder for finder in sys.meta_path if isinstance(finder, Neighbours)]
    assert len(found) == 1
    assert neighbours.NAMES == NAMES == ("clients", "strategies", "simulations")


def run_app(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(Path(neighbours.__file__).parents[1])!r}]"
    return subprocess.run([sys.executable, "-P", "-c", f"{path}\n{code}"], capture_output=True, text=True)


def test_an_app_that_hides_two_of_our_packages_works_once_kdfed_is_imported(tmp_path: Path) -> None:
    """With kdfed's own packages: the whole of what a ServerApp and a ClientApp import."""
    for package in ("strategies", "clients"):
        write(tmp_path / package, __init__="", mine="value = 1")
    code = """
        from strategies.pre_consolidation import PreConsolidation
        from clients.teacher import teacher
        from simulations.server_app import app
        from strategies.mine import value
        from clients.mine import value
        print(PreConsolidation.__module__, teacher.__module__, app is not None)
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    done = run_app(tmp_path, "import kdfed\n" + lines)
    assert (done.stdout.strip(), done.stderr) == ("strategies.pre_consolidation clients.teacher True", "")
    assert "No module named 'strategies.pre_consolidation'" in run_app(tmp_path, lines).stderr
