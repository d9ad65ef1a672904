"""``matrix.json``: what its flat records say, and who refuses them where the run folders say otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import simulations.report
from kdfed.errors import RunFolderError
from simulations.cli import main
from simulations.matrix import read_matrix
from simulations.matrix.records import MatrixRecord
from tests.simulations.matrix.matrices import read, recorded

CELLS = {"skewed": {"cold": [10, None], "warm": [4, 5]}, "even": {"cold": [8], "warm": [2]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a matrix that no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulations.report, "build_report", lambda folder: None)
        return recorded(tmp_path_factory.mktemp("matrix"), CELLS)[1]


@pytest.fixture
def out(made, tmp_path):
    """Return the folder of a matrix of one's own."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def told(out):
    return json.loads((out / "matrix.json").read_text())


def test_a_record_says_where_it_comes_from_and_what_the_target_took(tmp_path):
    """Warm needs 4 rounds and the teachers: 5 exchanges of 10 uploads, 300 bytes and 5 steps."""
    _, out = recorded(tmp_path, CELLS, **{"held-out": ["skewed"]}, cells={"skewed": {"frame": "small"}})
    whole = told(out)
    assert (whole["schema"], whole["name"], whole["unfinished"]) == (1, "tiny", [])
    assert whole["headline"] == {"arm": "warm", "baseline": "cold", "beside": None, "aims": {}}
    assert whole["versions"] == {"kdfed": "1", "torch": "2", "numpy": "", "flwr": "", "code": "unknown"}
    one = next(
        one for one in whole["cells"] if (one["arm"], one["seed"], one["target"]) == ("warm", 0, "0.8")
    )
    assert one == {
        "frame": "small",
        "cell": "skewed",
        "dataset": "digits",
        "distribution": "dirichlet(alpha=0.5)",
        "participants": 4,
        "sampled": 4,
        "server": "fedavg",
        "arm": "warm",
        "seed": 0,
        "target": "0.8",
        "held_out": True,
        "rounds_to_target": 4,
        "exchanges_to_target": 5,
        "participant_uploads": 50,
        "bytes": 1500,
        "local_steps": 25,
        "horizon": 20,
        "converged_accuracy": pytest.approx(0.9),
        "test_accuracy": pytest.approx(0.8),
    }
    assert set(one) == set(MatrixRecord.model_fields)


def test_a_miss_is_null_and_its_horizon_is_told(out):
    one = next(one for one in told(out)["cells"] if (one["arm"], one["seed"]) == ("cold", 1))
    costs = ("rounds_to_target", "exchanges_to_target", "participant_uploads", "bytes", "local_steps")
    assert [one[cost] for cost in costs] == [None] * 5
    assert (one["horizon"], one["converged_accuracy"]) == (20, pytest.approx(0.1))


def test_records_come_in_the_order_of_the_file_and_are_written_alike(tmp_path):
    matrix, out = recorded(tmp_path, CELLS)
    before = (out / "matrix.json").read_bytes()
    cells = list(dict.fromkeys(one["cell"] for one in told(out)["cells"]))
    assert cells == [cell.name for cell in matrix.cells] == ["skewed", "even"]
    (tmp_path / "again").mkdir()
    assert (recorded(tmp_path / "again", CELLS)[1] / "matrix.json").read_bytes() == before


def test_what_was_written_is_read(tmp_path):
    found = read(tmp_path, CELLS, **{"held-out": ["even"]})
    assert [(cell.name, cell.held_out) for cell in found.cells] == [("skewed", False), ("even", True)]
    assert len(found.cells[0].records) == 2 * 2 * 21


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "exchanges_to_target",
            3,
            "exchanges_to_target: expected 10, as counted from its rounds.jsonl, got 3",
        ),
        (
            "rounds_to_target",
            None,
            "rounds_to_target: expected 10, as counted from its rounds.jsonl, got None",
        ),
        ("bytes", 1, "bytes: expected 3000"),
        ("dataset", "mnist5k", "dataset: expected 'digits'"),
        ("seed", 7, "seed: expected 0"),
        ("test_accuracy", 0.95, "test_accuracy: expected 0.8"),
        ("bytes", "many", "cells.0.bytes: expected a valid integer"),
        ("more", 1, "cells.0.more"),
    ],
)
def test_a_record_that_says_otherwise_is_refused_by_the_command_that_shows_it(out, capsys, key, value, words):
    whole = told(out)
    whole["cells"][0][key] = value
    (out / "matrix.json").write_text(json.dumps(whole))
    assert main(["report", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert not (out / "matrix.html").exists()


def test_records_that_are_missing_or_stand_twice_are_refused(out):
    whole = told(out)
    for cells, words in (
        (whole["cells"][:-1], "expected 4 records of cell 'even', as counted from its rounds.jsonl, got 3"),
        ([*whole["cells"], whole["cells"][0]], "expected one entry of"),
    ):
        (out / "matrix.json").write_text(json.dumps({**whole, "cells": cells}))
        with pytest.raises(RunFolderError, match=words):
            read_matrix(out)


def test_rounds_that_were_changed_are_refused(out):
    file = out / "cells" / "even" / "rounds.jsonl"
    file.write_text(file.read_text().replace('"accuracy": 0.1', '"accuracy": 0.85', 1))
    with pytest.raises(RunFolderError, match=r"summary.json: .*as counted from rounds.jsonl"):
        read_matrix(out)


def test_a_folder_without_a_matrix_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"expected a matrix folder with a readable matrix.json"):
        read_matrix(tmp_path)
