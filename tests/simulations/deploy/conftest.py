"""Small deployments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.deploy.reading import to_yaml
from simulations.deploy.settings import Plan
from simulations.deploy.writing import initialise

PLAN: dict[str, Any] = {
    "superlink": {"hosts": ["fl.example.org", "192.0.2.7"], "port": 42100},
    "participants": [
        {"name": "north", "data": "folder:/srv/images"},
        {"name": "south", "data": "npz:/srv/table.npz", "threads": 2, "allow": ["my_models:small"]},
    ],
}

LOCAL: dict[str, Any] = {**PLAN, "superlink": {"hosts": ["127.0.0.1", "localhost"], "port": 42101}}


@pytest.fixture
def plan_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a participants' file with some keys replaced."""

    def write(values: dict[str, Any] | None = None, **changes: Any) -> Path:
        file = tmp_path / "participants.yaml"
        file.write_text(to_yaml({**(values or PLAN), **changes}), encoding="utf-8")
        return file

    return write


@pytest.fixture
def deployed(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a deployment and returns its folder."""

    def write(values: dict[str, Any] | None = None, *, insecure: bool = False, **changes: Any) -> Path:
        folder = tmp_path / "deployment"
        initialise(folder, Plan.model_validate({**(values or PLAN), **changes}), insecure=insecure)
        return folder

    return write
