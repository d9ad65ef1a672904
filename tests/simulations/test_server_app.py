"""A whole experiment: records, failures, determinism."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import clients.client_app
from clients.client_app import app
from kdfed.config import COMBINATIONS
from kdfed.errors import ConfigError, RunError
from kdfed.events import Event
from kdfed.records import RunFolder, load_model, weights_sha256
from simulations import server_app
from simulations.engines import inprocess
from simulations.engines.inprocess import InProcessGrid
from simulations.server_app import run_experiment


def _run(experiment: Any, out: Path, nodes: int = 2) -> dict[str, Any]:
    return run_experiment(
        InProcessGrid(app, nodes), experiment, RunFolder.open_for(out, experiment), "inprocess"
    )


def _timeless(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


def test_a_run_leaves_the_records_of_the_design(tiny, tmp_path):
    experiment = tiny(seeds=[3, 4], targets=[0.2, "50%-of-best"])
    summary = _run(experiment, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.read_summary() == json.loads(json.dumps(summary))
    assert folder.read_experiment() == experiment
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "experiment.yaml",
        "rounds.jsonl",
        "summary.json",
        "models",
        "curves.png",
        "report.html",
    }
    rows = _timeless(tmp_path / "run")
    assert set(rows[0]) == {
        "arm",
        "seed",
        "round",
        "exchanges",
        "phase",
        "accuracy",
        "test_accuracy",
        "loss",
        "participant_uploads",
        "bytes_up",
        "bytes_down",
        "local_steps",
        "answered",
        "absent",
    }
    assert {(row["arm"], row["seed"]) for row in rows} == {(a, s) for a in experiment.arms for s in (3, 4)}
    assert len(summary["runs"]) == 2 * 2 * 2
    for run in summary["runs"]:
        state = load_model(tmp_path / "run" / "models" / f"{run['arm']}-{run['seed']}.safetensors")
        assert weights_sha256(state) == run["weights_sha256"]


def test_the_baseline_sets_relative_targets_of_its_own_seed(tiny, tmp_path):
    summary = _run(tiny(seeds=[3, 4]), tmp_path / "run")
    best = {run["seed"]: run["best_accuracy"] for run in summary["runs"] if run["arm"] == "cold"}
    for run in summary["runs"]:
        assert run["target_accuracy"] == pytest.approx(0.9 * best[run["seed"]])


def test_a_repeated_run_is_identical_for_any_number_of_nodes(tiny, tmp_path):
    experiment = tiny()
    summaries = [_run(experiment, tmp_path / str(nodes), nodes) for nodes in (1, 2, 4)]
    for nodes in (2, 4):
        assert _timeless(tmp_path / "1") == _timeless(tmp_path / str(nodes))
    hashes = [[run["weights_sha256"] for run in summary["runs"]] for summary in summaries]
    assert hashes[0] == hashes[1] == hashes[2]


def _personal_models(folder: Path) -> dict[str, bytes]:
    store = folder / "store"
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*.safetensors")}


def test_personal_models_are_identical_for_any_number_of_nodes_and_begin_afresh_in_a_repeated_run(
    tiny, tmp_path
):
    experiment = tiny(**{"local.mode": "mutual", "rounds.stop-at-target": False})
    found = []
    for folder, nodes in (("a", 1), ("b", 3), ("a", 2)):
        _run(experiment, tmp_path / folder, nodes)
        found.append((_timeless(tmp_path / folder), _personal_models(tmp_path / folder)))
    assert found[0] == found[1] == found[2]
    kept = {f"{arm}-3/{p}/{r}.safetensors" for arm in experiment.arms for p in range(5) for r in (2, 3)}
    assert set(found[0][1]) == kept


def test_results_do_not_depend_on_anybodys_global_generator(tiny, tmp_path):
    experiment = tiny()
    torch.manual_seed(1)
    first = _run(experiment, tmp_path / "a")
    torch.manual_seed(2)
    second = _run(experiment, tmp_path / "b")
    assert [r["weights_sha256"] for r in first["runs"]] == [r["weights_sha256"] for r in second["runs"]]


def test_a_failed_run_keeps_what_was_recorded_and_says_why(tiny, tmp_path, monkeypatch):
    honest, calls = clients.client_app.train_cohort, []

    def dies_in_round_two(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:  # cohorts of two, two and one
            raise RuntimeError("no power")
        return honest(*args, **more)

    monkeypatch.setattr(clients.client_app, "train_cohort", dies_in_round_two)
    experiment = tiny()
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    events: list[Event] = []
    with pytest.raises(RunError, match=r"arm cold, seed 3: round 2: expected at least 1 .*no power"):
        inprocess.run(experiment, folder, nodes=2, on_event=events.append)
    assert [row["round"] for row in _timeless(tmp_path / "run")] == [0, 1]
    summary = folder.read_summary()
    assert {run["stopped"] for run in summary["runs"]} == {"failed"}
    assert (tmp_path / "run" / "report.html").exists()
    assert "done" not in [event.phase for event in events]


def test_a_failed_arm_is_no_miss_and_whatever_went_wrong_a_summary_is_written(tiny, tmp_path, monkeypatch):
    honest = server_app.PreConsolidation.start

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config.name == "consolidated":
            raise ValueError("nobody expected this")
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(server_app.PreConsolidation, "start", fails)
    experiment = tiny()
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    with pytest.raises(ValueError, match="nobody expected this"):
        inprocess.run(experiment, folder, nodes=1, on_event=lambda event: None)
    summary = folder.read_summary()
    assert [run["arm"] for run in summary["runs"]] == ["cold"]
    for comparison in summary["comparisons"]:
        assert (comparison["pairs"], comparison["failed"]) == (0, 1)
        assert set(comparison["censored"].values()) == {0}


def test_events_follow_the_phases_of_each_arm(tiny, tmp_path):
    events: list[Event] = []
    experiment = tiny()
    inprocess.run(experiment, RunFolder.open_for(tmp_path / "r", experiment), nodes=1, on_event=events.append)
    phases = [event.phase for event in events if event.arm == "consolidated"]
    assert list(dict.fromkeys(phases)) == ["hello", "teachers", "consolidate", "rounds"]
    assert events[-1].phase == "done"


def test_logits_instead_of_weights(tiny, tmp_path):
    """Weights never leave the participant, teachers differ in architecture, and the upload is the logits'."""
    experiment = tiny(
        **{
            "teachers.upload": "logits",
            "teachers.model": [
                {"name": "mlp", "options": {"hidden": [8]}},
                {"name": "cnn", "options": {"width": 4}},
            ],
            "teachers.epochs": 10,
            "consolidation.epochs": 20,
            "rounds.max": 1,
        }
    )
    _run(experiment, tmp_path / "run")
    start = next(r for r in _timeless(tmp_path / "run") if r["arm"] == "consolidated")
    transfer = 60
    assert start["participant_uploads"] == 5
    assert start["bytes_up"] > 5 * transfer * 10 * 2
    assert start["bytes_down"] > 5 * transfer * 64, (
        "the transfer set is sent to everybody who does not hold it"
    )
    assert start["accuracy"] > 0.3


@pytest.mark.parametrize(
    "changes",
    [
        {"consolidation.ensemble": "mean-logits"},
        {"consolidation.ensemble": "confidence"},
        {"consolidation.ensemble": "validated"},
        {"consolidation.ensemble": "label-counts", "teachers.label-counts": {"send": True}},
        {"consolidation.ensemble": "label-counts", "teachers.label-counts": {"send": True, "epsilon": 1.0}},
        {"consolidation.labels": True, "consolidation.weight": 0.5},
        {"consolidation.augmentation": ["flip", "crop"], "model.name": "cnn", "model.options": {"width": 4}},
        {
            "consolidation.init": "averaged",
            "consolidation.select": "best",
            "consolidation.schedule": "cosine",
        },
        {"consolidation.init": "random", "teachers.init": "own", "teachers.optimizer": "adam"},
        {"teachers.model": {"name": "mlp", "options": {"hidden": [24]}}},
    ],
)
def test_every_option_of_the_teacher_phase_runs_and_beats_the_cold_start(tiny, tmp_path, changes):
    longer = {"rounds.max": 0, "teachers.epochs": 10, "consolidation.epochs": 20}
    _run(tiny(**{**longer, **changes}), tmp_path / "run")
    accuracy = {row["arm"]: row["accuracy"] for row in _timeless(tmp_path / "run")}
    assert accuracy["consolidated"] > accuracy["cold"]


@pytest.mark.parametrize("choice", sorted(c for c, refused in COMBINATIONS.items() if refused is None))
def test_every_valid_combination_consolidates(tiny, tmp_path, choice):
    method, upload, labels, augmentation = choice
    changes = {
        "consolidation.method": method,
        "teachers.upload": upload,
        "consolidation.labels": labels,
        "consolidation.augmentation": ["crop"] if augmentation else [],
        "rounds.max": 0,
        "teachers.epochs": 5,
    }
    if method in ("vanilla", "partitioned"):
        changes["consolidation.weight"] = 0.5 if labels else 1.0
    if method == "tuned":
        changes["consolidation.weights"] = [0.5, 1.0] if labels else [1.0]
        changes["consolidation.temperatures"] = [1.0, 3.0]
    summary = _run(tiny(**changes), tmp_path / "run")
    (consolidation,) = summary["consolidations"]
    assert consolidation["method"] == method
    assert consolidation["steps"] > 0
    assert len(consolidation["trials"]) == (0 if method != "tuned" else 4 if labels else 2)
    loss = {row["arm"]: row["loss"] for row in _timeless(tmp_path / "run")}
    assert loss["consolidated"] < loss["cold"]


def test_a_start_from_logits_and_from_weights_agree(tiny, tmp_path):
    """float16 logits carry the same knowledge as the weights that made them."""
    starts = {}
    for upload in ("weights", "logits"):
        _run(tiny(**{"teachers.upload": upload, "rounds.max": 0}), tmp_path / upload)
        starts[upload] = next(r for r in _timeless(tmp_path / upload) if r["arm"] == "consolidated")
    assert starts["weights"]["accuracy"] == pytest.approx(starts["logits"]["accuracy"], abs=0.05)
    assert starts["weights"]["loss"] == pytest.approx(starts["logits"]["loss"], abs=0.02)


def test_a_bare_flwr_run_needs_an_absolute_out():
    config = {"experiment": "quickstart.yaml", "set": "", "seeds": "", "out": "here"}
    with pytest.raises(ConfigError, match="out: expected an absolute path"):
        server_app._from_run_config(config)


def test_the_run_config_has_the_meaning_of_the_command_line(tmp_path):
    config = {
        "experiment": "quickstart.yaml",
        "set": "partition.alpha=0.5 rounds.max=2",
        "seeds": "7 8",
        "out": str(tmp_path),
    }
    experiment, out = server_app._from_run_config(config)
    assert (experiment.partition.alpha, experiment.rounds.max, experiment.seeds) == (0.5, 2, (7, 8))
    assert out == tmp_path
