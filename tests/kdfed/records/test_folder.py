from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kdfed.config import build_experiment, merge
from kdfed.errors import RunFolderError
from kdfed.records import Outcome, RoundRecord, RunFolder, summarise, write_atomically

VALUES = {
    "name": "small",
    "seeds": [0, 1],
    "partition": {"kind": "dirichlet", "alpha": 0.1},
    "arms": {"cold": {}, "warm": {"start": "averaged"}},
}
EXPERIMENT = build_experiment(VALUES)
OTHER = build_experiment(merge(VALUES, {"partition.alpha": 0.5, "name": "other", "arms.hot": {}}))
RECORD = RoundRecord("cold", 0, 0, 0, "start", 0.5, 0.5, 1.0, 0, 0, 0, 0, 0, (), 0.0)
SUMMARY = summarise(EXPERIMENT, "größer", [RECORD], [Outcome("cold", 0, "failed", "")])
OURS = ("rounds.jsonl", "summary.json", "curves.png", "report.html", "models/cold-0.safetensors")


def filled(path) -> RunFolder:
    """Return a run folder with every kind of record, and two files of somebody else."""
    folder = RunFolder.open_for(path, EXPERIMENT)
    folder.append(RECORD)
    folder.write_summary({"experiment": "small"})
    folder.save_model("cold", 0, {"w": torch.ones(1)})
    for name in ("curves.png", "report.html", "notes.txt", "models/mine.safetensors"):
        (path / name).write_text("x")
    return folder


def test_a_new_folder_holds_the_resolved_experiment(tmp_path):
    folder = RunFolder.open_for(tmp_path / "a" / "b", EXPERIMENT)
    assert folder.read_experiment() == EXPERIMENT


def test_a_folder_with_files_of_others_can_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    RunFolder.open_for(tmp_path, EXPERIMENT)
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_the_same_experiment_starts_afresh_and_touches_nothing_else(tmp_path):
    filled(tmp_path)
    RunFolder.open_for(tmp_path, EXPERIMENT)
    assert not [name for name in OURS if (tmp_path / name).exists()]
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "models" / "mine.safetensors").exists()


def test_another_experiment_is_refused_and_the_differing_keys_are_named(tmp_path):
    filled(tmp_path)
    with pytest.raises(RunFolderError, match="holds another experiment") as error:
        RunFolder.open_for(tmp_path, OTHER)
    assert "partition.alpha: 0.1 there, 0.5 here" in str(error.value)
    assert "name: 'small' there, 'other' here" in str(error.value)
    assert "arms.hot: 'nothing' there, {} here" in str(error.value)
    assert "--out" in str(error.value)
    assert "seeds" not in str(error.value)
    assert all((tmp_path / name).exists() for name in OURS)
    assert error.value.exit_code == 2


def test_another_order_of_arms_is_another_experiment(tmp_path):
    filled(tmp_path)
    swapped = build_experiment({**VALUES, "arms": dict(reversed(VALUES["arms"].items()))})
    with pytest.raises(RunFolderError, match="in the order cold, warm there, warm, cold here"):
        RunFolder.open_for(tmp_path, swapped)


def test_overwrite_clears_another_experiment(tmp_path):
    filled(tmp_path)
    folder = RunFolder.open_for(tmp_path, OTHER, overwrite=True)
    assert folder.read_experiment() == OTHER
    assert not [name for name in OURS if (tmp_path / name).exists()]
    assert (tmp_path / "models" / "mine.safetensors").exists()


@pytest.mark.parametrize("name", OURS)
def test_records_of_nobody_knows_which_experiment_are_refused(tmp_path, name):
    (tmp_path / "models").mkdir()
    (tmp_path / name).write_text("x")
    with pytest.raises(RunFolderError, match=r"but no experiment\.yaml"):
        RunFolder.open_for(tmp_path, EXPERIMENT)
    RunFolder.open_for(tmp_path, EXPERIMENT, overwrite=True)
    assert not (tmp_path / name).exists()


def test_an_experiment_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "experiment.yaml").write_text("name: [")
    with pytest.raises(RunFolderError, match="cannot be read"):
        RunFolder.open_for(tmp_path, EXPERIMENT)
    assert RunFolder.open_for(tmp_path, EXPERIMENT, overwrite=True).read_experiment() == EXPERIMENT


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="expected a folder that can be written to"):
            RunFolder.open_for(path, EXPERIMENT)


def test_a_start_that_the_run_would_remove_is_refused(tmp_path):
    filled(tmp_path)
    start = f"file:{tmp_path / 'models' / 'cold-0.safetensors'}"
    follower = build_experiment(merge(VALUES, {"arms.warm.start": start}))
    with pytest.raises(RunFolderError, match="arm 'warm' starts from"):
        RunFolder.open_for(tmp_path, follower, overwrite=True)
    assert (tmp_path / "models" / "cold-0.safetensors").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_file_that_a_run_was_started_from_is_not_replaced(tmp_path, overwrite):
    file = tmp_path / "experiment.yaml"
    file.write_text("# mine\n" + EXPERIMENT.to_yaml())
    with pytest.raises(RunFolderError, match="would replace the file that it was started from"):
        RunFolder.open_for(tmp_path, EXPERIMENT, overwrite, source=file)
    assert file.read_text().startswith("# mine")
    file.write_text(EXPERIMENT.to_yaml())
    RunFolder.open_for(tmp_path, EXPERIMENT, overwrite, source=file)


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="expected a file that can be written"):
            write_atomically(path, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_rounds_read_back_in_the_order_they_were_written(tmp_path):
    folder = RunFolder.open_for(tmp_path, EXPERIMENT)
    records = [replace(RECORD, arm=arm, round=r) for arm in ("warm", "cold") for r in (0, 1)]
    for count, record in enumerate(records, start=1):
        folder.append(record)
        assert folder.read_rounds() == records[:count]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_last_line_cut_short_by_a_kill_is_dropped(tmp_path, cut):
    folder = RunFolder.open_for(tmp_path, EXPERIMENT)
    folder.append(RECORD)
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write(RECORD.to_json()[:cut])
    assert folder.read_rounds() == [RECORD]


def test_a_broken_line_before_the_last_is_refused(tmp_path):
    folder = RunFolder.open_for(tmp_path, EXPERIMENT)
    (tmp_path / "rounds.jsonl").write_text('{"arm": "cold"}\n' + RECORD.to_json() + "\n")
    with pytest.raises(RunFolderError, match="line 1: expected a record"):
        folder.read_rounds()


def test_a_folder_without_records_says_what_it_lacks(tmp_path):
    for read, name in (
        (RunFolder(tmp_path).read_rounds, "rounds.jsonl"),
        (RunFolder(tmp_path).read_summary, "summary.json"),
        (RunFolder(tmp_path).read_experiment, "experiment.yaml"),
    ):
        with pytest.raises(RunFolderError, match=f"expected a run folder with a readable {name}"):
            read()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "expected JSON"),
        ("[]", r"expected an object, got \[\]"),
        ("{}", "experiment: expected this key"),
        (json.dumps(SUMMARY | {"runs": None}), "runs: expected a list, got None"),
        (json.dumps(SUMMARY | {"runs": [{"arm": "cold"}]}), r"runs\.0\.seed: expected this key"),
        (json.dumps(SUMMARY | {"comparisons": [3]}), r"comparisons\.0: expected an object, got 3"),
    ],
)
def test_a_broken_summary_is_refused(tmp_path, text, complaint):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(RunFolderError, match=complaint):
        RunFolder(tmp_path).read_summary()


def test_a_summary_reads_back_and_leaves_no_half_file(tmp_path):
    folder = RunFolder.open_for(tmp_path, EXPERIMENT)
    folder.write_summary(SUMMARY)
    assert folder.read_summary() == SUMMARY
    with pytest.raises(ValueError, match="JSON"):
        folder.write_summary({"experiment": float("nan")})
    assert folder.read_summary()["engine"] == "größer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.yaml", "models", "summary.json"]
