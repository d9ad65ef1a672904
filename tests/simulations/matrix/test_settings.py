"""Layers, names, and every mistake of every cell at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import simulations
from kdfed.errors import ConfigError
from simulations.matrix import chosen_cells, load_matrix
from tests.simulations.matrix.matrices import written


def mistakes(folder, **changes):
    with pytest.raises(ConfigError) as caught:
        load_matrix(written(folder, **changes))
    return {mistake.key: mistake.message for mistake in caught.value.mistakes}


def cells_of(matrix):
    return {cell.name: cell for cell in matrix.cells}


def test_a_cell_is_base_then_frame_then_its_own_keys(tmp_path):
    frame = {"local": {"lr": 0.2}, "arms": {"warm": {"local.lr": 0.3}}}
    own = {"frame": "small", "local": {"batch-size": 4}}
    matrix = load_matrix(written(tmp_path, frames={"small": frame}, cells__skewed=own))
    cell = cells_of(matrix)["skewed"]
    cold, warm = cell.experiment.arm("cold"), cell.experiment.arm("warm")
    assert (cell.frame, cell.experiment.name, cell.experiment.seeds) == ("small", "skewed", (1, 2))
    assert (cold.local.lr, warm.local.lr) == (0.2, 0.3)
    assert (cold.local.batch_size, cold.local.epochs) == (4, 1)
    assert cells_of(matrix)["even"].experiment.arm("cold").local.lr == 0.1


def test_another_kind_drops_the_keys_of_the_old_one(tmp_path):
    partition = cells_of(load_matrix(written(tmp_path)))["even"].experiment.partition
    assert (partition.kind, partition.participants) == ("uniform", 4)
    assert not hasattr(partition, "alpha")


def test_an_arm_that_is_null_is_left_out(tmp_path):
    more = {"partition": {"kind": "uniform"}, "arms": {"warm": None}}
    cells = cells_of(load_matrix(written(tmp_path, cells__even=more)))
    assert list(cells["even"].experiment.arms) == ["cold"]
    assert list(cells["skewed"].experiment.arms) == ["cold", "warm"]


def test_a_cell_alone_has_one_seed_and_the_same_folder(tmp_path):
    cell = cells_of(load_matrix(written(tmp_path)))["skewed"]
    assert (cell.alone(2).seeds, cell.alone(2).folder) == ((2,), tmp_path)
    assert cell.experiment.seeds == (1, 2)


def test_mistakes_of_all_cells_are_reported_at_once_with_their_places(tmp_path):
    found = mistakes(
        tmp_path,
        cells__skewed={"frame": "small", "partition.alpha": -1},
        cells__even={"frame": "smal", "arms": {"warm": {"start": "consolidated"}}},
        cells__third={"locl": {}},
    )
    assert set(found) == {"cells.skewed.partition.alpha", "cells.even.frame", "cells.third.locl"}
    assert "did you mean 'small'?" in found["cells.even.frame"]


def test_a_mistake_that_all_cells_share_is_said_once(tmp_path):
    found = mistakes(tmp_path, base__local__lr=-1)
    assert list(found) == ["cells.skewed.local.lr"]
    assert found["cells.skewed.local.lr"].endswith("(so in 1 more: even)")


def test_what_only_the_data_show_is_a_mistake_too(tmp_path):
    found = mistakes(tmp_path, cells__even={"partition": {"kind": "uniform", "participants": 5000}})
    assert [key for key in found if key.startswith("cells.even.partition")]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"held-out": ["evn"]}, "held-out.0", "did you mean 'even'?"),
        ({"headline__arm": "hot"}, "headline.arm", "expected an arm of a cell, got 'hot'"),
        ({"headline__beside": "hot"}, "headline.beside", "expected an arm of a cell, got 'hot'"),
        ({"headline__arm": "cold"}, "headline.arm", "expected another arm"),
        ({"headline__aims": {"0.7": 50.0}}, "headline.aims.0.7", "expected a target of a cell"),
        ({"base__rounds__horizon": "auto"}, "cells.skewed.rounds.horizon", "`kdfed tune` finds one"),
        ({"base__name": "x"}, "cells.skewed.name", "is the cell's own; remove it"),
        ({"cells__even__baseline": "warm"}, "cells.even.baseline", "expected 'cold', the headline's"),
        ({"frame": {}}, "frame", "did you mean 'frames'?"),
    ],
)
def test_names_that_name_nothing_are_refused(tmp_path, changes, key, words):
    found = mistakes(tmp_path, **changes)
    assert list(found) == [key]
    assert words in found[key]


def test_the_command_line_chooses_cells_and_seeds(tmp_path):
    matrix = load_matrix(written(tmp_path))
    assert chosen_cells(matrix, None, None) == {"skewed": [1, 2], "even": [1]}
    assert chosen_cells(matrix, ["skewed"], ["2"]) == {"skewed": [2]}
    assert chosen_cells(matrix, None, ["2"]) == {"skewed": [2], "even": []}


def test_the_command_line_names_cells_and_seeds_that_there_are(tmp_path):
    matrix = load_matrix(written(tmp_path))
    with pytest.raises(ConfigError, match=r"--only: expected a cell, got 'evn'; did you mean 'even'\?"):
        chosen_cells(matrix, ["evn"], None)
    with pytest.raises(ConfigError, match="--seeds: expected seeds of the matrix, got '2'"):
        chosen_cells(matrix, ["even"], ["2"])


def test_the_example_of_the_page_is_a_matrix(tmp_path):
    page = Path(__file__).parents[3] / "docs" / "matrix.md"
    example, part = re.findall(r"^```text\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "claim.yaml").write_text(example)
    matrix = load_matrix(tmp_path / "claim.yaml")
    assert [(cell.name, cell.frame, cell.held_out) for cell in matrix.cells] == [
        ("mnist5k-0.1", "scratch", False),
        ("digits-uniform", "", True),
    ]
    assert "solved" not in matrix.cells[1].experiment.arms
    (tmp_path / "rounds.yaml").write_text(part)
    fewer = load_matrix(tmp_path / "rounds.yaml")
    assert [(cell.name, cell.experiment.seeds) for cell in fewer.cells] == [
        ("mnist5k-0.1", (10, 11, 12)),
        ("digits-uniform", (10, 11, 12)),
    ]


# ----------------------------------------------------------------------------- a part of another matrix


def part(folder, **changes):
    written(folder).rename(folder / "whole.yaml")
    values = {"name": "part", "of": "whole.yaml", "only": ["skewed"], "seeds": [2, 5], **changes}
    path = folder / "part.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_a_part_has_fewer_cells_and_other_seeds_and_else_what_the_whole_has(tmp_path):
    whole = load_matrix(written(tmp_path))
    matrix = load_matrix(part(tmp_path))
    (cell,) = matrix.cells
    assert (matrix.name, matrix.headline) == ("part", whole.headline)
    assert (cell.name, cell.experiment.seeds) == ("skewed", (2, 5))
    before = cells_of(whole)["skewed"]
    assert cell.held_out == before.held_out
    assert cell.experiment.model_copy(update={"seeds": before.experiment.seeds}) == before.experiment


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"only": ["skew"]}, "only.0", "did you mean 'skewed'"),
        ({"only": []}, "only", "at least 1"),
        ({"seeds": ["one"]}, "seeds.0", "whole number"),
        ({"cells": {}}, "cells", "unknown key"),
        ({"of": "part.yaml"}, "of", "itself a part"),
        ({"of": "none.yaml"}, "", "readable YAML file"),
    ],
)
def test_mistakes_of_a_part_are_told(tmp_path, changes, key, words):
    with pytest.raises(ConfigError) as caught:
        load_matrix(part(tmp_path, **changes))
    found = {mistake.key: mistake.message for mistake in caught.value.mistakes}
    assert words in found[key], found


def test_the_shipped_part_is_one_of_the_shipped_matrix():
    folder = Path(simulations.__file__).parent
    whole, rounds = (load_matrix(folder / name) for name in ("matrix.yaml", "matrix-rounds.yaml"))
    assert {cell.name for cell in rounds.cells} < {cell.name for cell in whole.cells}
    assert all(len(cell.experiment.seeds) == 3 for cell in rounds.cells)
    assert whole.headline.arm == "recipe"
