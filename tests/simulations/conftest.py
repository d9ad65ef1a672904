"""What the tests of the command share."""

from __future__ import annotations

import pytest


@pytest.fixture
def experiment(tmp_path, monkeypatch, tiny):
    """The tiny experiment as ``tiny.yaml`` in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny(rounds__horizon=1).to_yaml())
    return path
