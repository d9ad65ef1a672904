"""The Flower app: what ``flwr run simulations`` packs and accepts."""

from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import Path

import pytest

import simulations
from kdfed.private.flwr import app_bundle, app_complaints

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's

APP = Path(simulations.__file__).parent


@pytest.fixture(scope="module")
def names() -> list[str]:
    return zipfile.ZipFile(io.BytesIO(app_bundle(APP))).namelist()


def test_the_bundle_holds_experiments_and_nothing_that_python_could_import(names):
    experiments = [name for name in names if name.endswith(".yaml")]
    assert set(names) == {"pyproject.toml", ".info/CONTENT", *experiments}
    assert "quickstart.yaml" in experiments


def test_the_bundle_holds_every_shipped_experiment(names):
    assert {path.name for path in APP.glob("*.yaml")} <= set(names)


def test_flower_has_no_complaint_about_the_app():
    assert app_complaints(APP / "pyproject.toml") == []


def test_the_app_installs_nothing_and_its_run_config_keys_are_the_agreed_ones():
    settings = tomllib.loads((APP / "pyproject.toml").read_text())
    assert settings["project"]["dependencies"] == []
    assert set(settings["tool"]["flwr"]["app"]["config"]) == {"experiment", "set", "seeds", "out"}
