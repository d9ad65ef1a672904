"""A whole experiment: records, failures, determinism."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import clients.client_app
from clients.client_app import app
from kdfed.config import combinations
from kdfed.errors import ConfigError, RecordError, RunError, RunFolderError
from kdfed.events import Event
from kdfed.listeners import Listener
from kdfed.records import RunFolder, load_model, weights_sha256
from simulations import server_app
from simulations.engines import inprocess
from simulations.engines.inprocess import InProcessGrid
from simulations.experiments import FAMILIES
from simulations.server_app import run_experiment


def _run(experiment: Any, out: Path, nodes: int = 2, overwrite: bool = False) -> dict[str, Any]:
    folder = RunFolder.open_for(out, experiment, overwrite)
    return run_experiment(InProcessGrid(app, nodes), experiment, folder, "inprocess")


class Impatient(Listener):
    """Wants to stop at once."""

    in_step = True

    def should_stop(self) -> str | None:
        """Say why."""
        return "enough"


@pytest.fixture
def drawn() -> None:
    """For tests that look at picture and page."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere nothing is drawn: that takes longer than these runs."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("simulations.report.build_report", lambda folder: None)


def _timeless(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


@pytest.mark.slow
def test_a_run_leaves_the_records_of_the_design(tiny, tmp_path, drawn):
    experiment = tiny(seeds=[3, 4], targets=[0.2, "50%-of-converged"])
    summary = _run(experiment, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.read_summary() == json.loads(json.dumps(summary))
    recorded = folder.read_experiment()
    assert recorded.model_dump() == experiment.model_dump()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "experiment.yaml",
        "rounds.jsonl",
        "summary.json",
        "outcomes.jsonl",
        "models",
        "curves.png",
        "report.html",
        ".kdfed",
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
        "validation_accuracy",
    }
    assert {(row["arm"], row["seed"]) for row in rows} == {(a, s) for a in experiment.arms for s in (3, 4)}
    assert len(summary["runs"]) == 2 * 2 * 3, "arms, seeds, and targets with 99%-of-converged"
    assert (summary["evaluation_examples"], summary["server_labels"]) == (80, 0)
    assert summary["majority"] == pytest.approx(0.1, abs=0.03)
    assert summary["horizon"] == {"rounds": 3, "why": "given in the experiment"}
    for run in summary["runs"]:
        state = load_model(tmp_path / "run" / "models" / f"{run['arm']}-{run['seed']}.safetensors")
        assert weights_sha256(state) == run["weights_sha256"]


def test_nothing_is_drawn_of_a_run_whose_report_is_not_wanted(tiny, tmp_path, drawn):
    folder = RunFolder.open_for(tmp_path / "run", tiny(only="cold", rounds__horizon=1))
    run_experiment(InProcessGrid(app, 1), folder.experiment, folder, "inprocess", report=False)
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "curves.png").exists()


def test_the_baseline_sets_relative_targets_of_its_own_seed(tiny, tmp_path):
    summary = _run(tiny(seeds=[3, 4]), tmp_path / "run")
    rows = [row for row in _timeless(tmp_path / "run") if row["arm"] == "cold" and row["round"] > 0]
    for run in summary["runs"]:
        last = [row["accuracy"] for row in rows if row["seed"] == run["seed"]]
        share = {"90%-of-converged": 0.9, "99%-of-converged": 0.99}[run["target"]]
        assert run["target_accuracy"] == pytest.approx(share * sum(last) / 3)


def test_controls_are_run_recorded_and_summed_up_like_any_arm(tiny, tmp_path):
    experiment = tiny(controls=["averaged", "longer"])
    summary = _run(experiment, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    recorded = folder.read_experiment()
    assert recorded == experiment
    assert recorded.arm_order == ("cold", "consolidated", "averaged", "longer")
    assert list(dict.fromkeys(row["arm"] for row in _timeless(tmp_path / "run"))) == list(recorded.arm_order)
    controls = summary["controls"]
    assert {name: entry["arm"] for name, entry in controls.items()} == {
        "server_alone": None,
        "server_start": None,
        "averaged": "averaged",
        "longer": "longer",
    }
    last = {row["arm"]: row for row in _timeless(tmp_path / "run")}
    assert controls["longer"]["test_accuracy"] == pytest.approx(last["longer"]["test_accuracy"])
    assert controls["longer"]["labels"] is None
    start = next(row for row in _timeless(tmp_path / "run") if row["arm"] == "averaged")
    assert start["exchanges"] == 1
    assert last["longer"]["exchanges"] == last["cold"]["exchanges"] == 3
    assert last["longer"]["local_steps"] == last["consolidated"]["local_steps"], "as many as with teachers"
    with pytest.raises(RunFolderError, match="holds a complete run"):
        RunFolder.open_for(tmp_path / "run", experiment)


def test_the_server_alone_is_a_control_whose_labels_are_counted(tiny, tmp_path):
    """20 of 400 examples are validation examples: what the server's own model is fitted on."""
    summary = _run(tiny(controls=["server"], **{"rounds.horizon": 2}), tmp_path / "run")
    rows = [row for row in _timeless(tmp_path / "run") if row["arm"] == "server"]
    alone, start = (summary["controls"][name] for name in ("server_alone", "server_start"))
    assert (alone["arm"], alone["labels"], start["labels"]) == ("server", 20, 20)
    assert alone["start_accuracy"] == rows[0]["accuracy"]
    assert alone["test_accuracy"] == rows[0]["test_accuracy"]
    assert start["test_accuracy"] == rows[-1]["test_accuracy"]
    assert (rows[0]["exchanges"], rows[0]["participant_uploads"]) == (0, 0)
    assert summary["server_labels"] == 0, "of the arms that are no controls"


def test_every_arm_of_a_comparison_runs_to_the_horizon_whatever_a_listener_says(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "impatient_module", SimpleNamespace(Impatient=Impatient))
    wanted = {"listeners": [{"name": "impatient_module:Impatient"}]}
    summary = _run(tiny(**wanted), tmp_path / "several")
    assert {(run["stopped"], run["totals"]["round"]) for run in summary["runs"]} == {("horizon", 3)}
    assert "goes on, because arms that are compared run equally long" in (
        RunFolder(tmp_path / "several").log_path.read_text()
    )
    alone = _run(tiny(only="cold", **wanted), tmp_path / "alone")
    assert {(run["stopped"], run["totals"]["round"]) for run in alone["runs"]} == {("listener", 0)}
    assert {run["converged_accuracy"] for run in alone["runs"]} == {None}


@pytest.mark.slow
def test_a_repeated_run_is_identical_for_any_number_of_nodes(tiny, tmp_path):
    experiment = tiny()
    summaries = [_run(experiment, tmp_path / str(nodes), nodes) for nodes in (1, 2, 4)]
    for nodes in (2, 4):
        assert _timeless(tmp_path / "1") == _timeless(tmp_path / str(nodes))
    hashes = [[run["weights_sha256"] for run in summary["runs"]] for summary in summaries]
    assert hashes[0] == hashes[1] == hashes[2]


def _personal_models(folder: Path) -> dict[str, bytes]:
    store = folder / ".kdfed" / "store"
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*.safetensors")}


@pytest.mark.slow
def test_personal_models_are_identical_for_any_number_of_nodes_and_begin_afresh_in_a_repeated_run(
    tiny, tmp_path
):
    experiment = tiny(**{"local.mode": "mutual"})
    found = []
    for folder, nodes in (("a", 1), ("b", 3), ("a", 2)):
        _run(experiment, tmp_path / folder, nodes, overwrite=True)
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


@pytest.fixture
def breaks(monkeypatch):
    """Return a function that lets an arm raise once it has recorded some rounds."""

    def let(arm: str, error: BaseException, rounds: int = 1) -> None:
        honest = server_app.PreConsolidation.start

        def start(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.config.name == arm:
                record, recorded = self.config.on_record, []

                def on_record(one: Any) -> None:
                    record(one)
                    recorded.append(one)
                    if len(recorded) == rounds:
                        raise error

                self.config = replace(self.config, on_record=on_record)
            return honest(self, *args, **kwargs)

        monkeypatch.setattr(server_app.PreConsolidation, "start", start)

    return let


def test_a_failed_run_keeps_what_was_recorded_and_says_why(tiny, tmp_path, monkeypatch, drawn):
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
    assert [(f["arm"], f["seed"], f["phase"]) for f in summary["failures"]] == [
        ("cold", 3, "rounds"),
        ("consolidated", 3, "teachers"),
    ]
    assert (tmp_path / "run" / "report.html").exists()
    assert "done" not in [event.phase for event in events]


def test_a_server_model_that_fails_is_a_failure_of_the_start_and_the_others_run(tiny, tmp_path):
    wild = {"start": "server", "server-fit": {"optimizer": "sgd", "lr": 1000.0, "weight-decay": 1000.0}}
    with pytest.raises(RunError, match="the server's own model: expected a finite model"):
        _run(tiny(arms={"cold": {}, "own": wild}), tmp_path / "run")
    summary = RunFolder(tmp_path / "run").read_summary()
    assert [(f["arm"], f["seed"], f["phase"]) for f in summary["failures"]] == [("own", 3, "start")]
    assert {run["arm"] for run in summary["runs"]} == {"cold", "consolidated"}, "own has no record"


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["cold", "consolidated"])
def test_an_arm_that_fails_costs_itself_alone_and_its_reason_is_told_everywhere(
    tiny, tmp_path, breaks, arm, drawn
):
    breaks(arm, ValueError("nobody expected this"), rounds=2)
    experiment = tiny(seeds=[3, 4], targets=[0.99, "90%-of-converged"])
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    events: list[Event] = []
    with pytest.raises(RunError, match="nobody expected this") as error:
        inprocess.run(experiment, folder, nodes=1, on_event=events.append)
    assert error.value.exit_code == 1
    summary = folder.read_summary()
    reason = summary["failures"][0]["reason"]
    assert re.fullmatch(r"ValueError: nobody expected this \(test_server_app\.py, line \d+\)", reason)
    assert summary["failures"] == [
        {"arm": arm, "seed": seed, "phase": "rounds", "reason": reason} for seed in (3, 4)
    ]
    (other,) = set(experiment.arms) - {arm}
    stopped = {(run["arm"], run["seed"]): run["stopped"] for run in summary["runs"]}
    assert {stopped[other, seed] for seed in (3, 4)} == {"horizon"}
    assert {stopped[arm, seed] for seed in (3, 4)} == {"failed"}
    unresolved = [run for run in summary["runs"] if run["target_accuracy"] is None]
    assert len(unresolved) == (8 if arm == "cold" else 0), "two shares of two arms and seeds"
    for comparison in summary["comparisons"]:
        assert (comparison["pairs"], comparison["failed"]) == (0, 2)
        assert set(comparison["censored"].values()) == {0}
    assert [e.message for e in events if e.phase == "failed"] == [reason] * 2
    assert "nobody expected this" in (tmp_path / "run" / "report.html").read_text()
    assert "in on_record" in folder.log_path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_a_run_that_is_interrupted_leaves_a_summary(tiny, tmp_path, breaks, stop, drawn):
    breaks("consolidated", stop, rounds=2)
    experiment = tiny()
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    with pytest.raises(type(stop)):
        inprocess.run(experiment, folder, nodes=1, on_event=lambda event: None)
    assert {run["arm"]: run["stopped"] for run in folder.read_summary()["runs"]} == {
        "cold": "horizon",
        "consolidated": "interrupted",
    }
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["cold", "consolidated"])
def test_an_incomplete_run_goes_on_and_ends_as_if_it_had_never_stopped(
    tiny, tmp_path, breaks, monkeypatch, arm
):
    experiment = tiny(seeds=[3, 4], **{"local.mode": "mutual"})
    whole = _run(experiment, tmp_path / "whole")
    with monkeypatch.context():
        breaks(arm, RuntimeError("a wire came loose"), rounds=2)
        with pytest.raises(RunError):
            _run(experiment, tmp_path / "run")
    monkeypatch.undo()
    started = []
    monkeypatch.setattr(server_app, "initial_state", _noting(started, server_app.initial_state))
    again = _run(experiment, tmp_path / "run")
    assert len(started) == 2, "one arm of two seeds: the other one needs nothing of it"
    for summary in (whole, again):
        for run in summary["runs"]:
            for costs in (run["totals"], run["first_hit"], run["hit"]):
                (costs or {}).pop("seconds", None)
    assert again["runs"] == whole["runs"]
    assert again["failures"] == []
    assert sorted(map(str, _timeless(tmp_path / "run"))) == sorted(map(str, _timeless(tmp_path / "whole")))
    assert _personal_models(tmp_path / "run") == _personal_models(tmp_path / "whole")
    partial = (tmp_path / "run" / "rounds.partial.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["arm"] == arm for line in partial) == 4


def _noting(calls: list[Any], function: Any) -> Any:
    def call(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    return call


def test_a_report_that_cannot_be_made_leaves_the_records_and_the_runs_own_error(
    tiny, tmp_path, breaks, monkeypatch
):
    def cannot(folder: Path) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("simulations.report.build_report", cannot)
    experiment = tiny()
    with pytest.raises(RunError, match=r"the records are complete, but the report .*RuntimeError: no fonts"):
        _run(experiment, tmp_path / "a")
    assert len(RunFolder(tmp_path / "a").read_summary()["runs"]) == 4
    assert "RuntimeError: no fonts" in RunFolder(tmp_path / "a").log_path.read_text()
    breaks("cold", ValueError("the cause"))
    with pytest.raises(RunError, match=r"(?s)the cause.*no fonts"):
        _run(experiment, tmp_path / "b")


def test_records_that_cannot_be_written_end_the_run_at_once(tiny, tmp_path, monkeypatch):
    honest, written = RunFolder._append, []

    def full(self: Any, name: str, line: str, **more: Any) -> None:
        written.append(line)
        if len(written) == 2:
            raise RecordError("No space left on device")
        honest(self, name, line, **more)

    monkeypatch.setattr(RunFolder, "_append", full)
    with pytest.raises(RecordError, match="No space left"):
        _run(tiny(), tmp_path / "run")
    assert len(written) == 2
    assert RunFolder(tmp_path / "run").read_summary()["runs"][0]["stopped"] == "failed"


def test_a_folder_is_held_while_a_run_writes_and_free_afterwards(tiny, tmp_path):
    experiment, refused = tiny(), []

    def on_event(event: Event) -> None:
        if event.phase == "teachers":
            with pytest.raises(RunFolderError, match=f"written to by process {os.getpid()}") as error:
                RunFolder.open_for(tmp_path, experiment)
            refused.append(error)

    inprocess.run(experiment, RunFolder.open_for(tmp_path, experiment), nodes=1, on_event=on_event)
    assert refused
    RunFolder.open_for(tmp_path, experiment, overwrite=True)


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
            "rounds.horizon": 1,
        }
    )
    _run(experiment, tmp_path / "run")
    start = next(r for r in _timeless(tmp_path / "run") if r["arm"] == "consolidated")
    transfer = 40
    assert start["participant_uploads"] == 5
    assert start["bytes_up"] > 5 * transfer * 10 * 2
    assert start["bytes_down"] > 5 * transfer * 64, (
        "the transfer set is sent to everybody who does not hold it"
    )
    assert start["accuracy"] > 0.3


@pytest.mark.slow
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
    longer = {"rounds.horizon": 0, "teachers.epochs": 10, "consolidation.epochs": 20}
    _run(tiny(**{**longer, **changes}), tmp_path / "run")
    accuracy = {row["arm"]: row["accuracy"] for row in _timeless(tmp_path / "run")}
    assert accuracy["consolidated"] > accuracy["cold"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", sorted(c for c, refused in combinations(FAMILIES).items() if refused is None)
)
def test_every_valid_combination_consolidates(tiny, tmp_path, choice):
    method, transfer, upload, labels, augmentation = choice
    changes = {
        "consolidation.transfer": transfer,
        "consolidation.method": method,
        "teachers.upload": upload,
        "consolidation.labels": labels,
        "consolidation.augmentation": ["crop"] if augmentation else [],
        "rounds.horizon": 0,
        "teachers.epochs": 5,
    }
    if transfer == "proxy":
        changes["consolidation.proxy"] = {"source": "mnist5k", "limit": 400}
    if transfer == "generated":
        changes["consolidation.generator"] = {"steps": 10, "batch-size": 32, "latent": 8, "width": 4}
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


def test_a_generated_transfer_set_does_not_depend_on_the_number_of_nodes(tiny, run_arm):
    generator = {"steps": 3, "batch-size": 16, "latent": 8, "width": 4}
    changes = {"transfer": "generated", "images": 40, "generator": generator}
    experiment = tiny(**{"consolidation": changes, "rounds.horizon": 0})
    one, three = (run_arm(experiment, "consolidated", nodes=nodes) for nodes in (1, 3))
    assert one.consolidation == three.consolidation
    for key, value in one.arrays.to_torch_state_dict().items():
        assert torch.equal(value, three.arrays.to_torch_state_dict()[key])


def test_a_start_from_logits_and_from_weights_agree(tiny, tmp_path):
    """float16 logits carry the same knowledge as the weights that made them."""
    starts = {}
    for upload in ("weights", "logits"):
        _run(tiny(**{"teachers.upload": upload, "rounds.horizon": 0}), tmp_path / upload)
        starts[upload] = next(r for r in _timeless(tmp_path / upload) if r["arm"] == "consolidated")
    assert starts["weights"]["accuracy"] == pytest.approx(starts["logits"]["accuracy"], abs=0.05)
    assert starts["weights"]["loss"] == pytest.approx(starts["logits"]["loss"], abs=0.02)


def test_a_bare_flwr_run_takes_the_lock_too(tiny, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny().to_yaml())
    config = {"experiment": str(file), "set": "", "seeds": "", "out": str(tmp_path / "run")}
    context, grid = SimpleNamespace(run_config=config), InProcessGrid(app, 1)
    with (
        RunFolder.open_for(tmp_path / "run", tiny()),
        pytest.raises(RunFolderError, match="is being written to by process"),
    ):
        server_app.main(grid, context)
    server_app.main(grid, context)
    with pytest.raises(RunFolderError, match="holds a complete run"):
        server_app.main(grid, context)


def test_a_disk_that_fills_up_in_mid_run_loses_nothing_that_is_finished(tiny, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        experiment = tiny(**{"model.options.hidden": [128], "rounds.horizon": 1})  # a model takes 40 kB
        (disk / "ballast").write_bytes(bytes(2_019_000))
        folder = RunFolder.open_for(disk, experiment)
        with pytest.raises(RecordError, match=r"cannot be written: .*No space left.*Make room") as error:
            inprocess.run(experiment, folder, nodes=1, on_event=lambda event: None)
        assert error.value.exit_code == 1
        assert [(o.arm, o.stopped) for o in folder.read_outcomes()] == [("cold", "horizon")]
        (disk / "ballast").unlink()
        again = RunFolder.open_for(disk, experiment)
        assert set(again.finished) == {("cold", 3)}
        assert len(run_experiment(InProcessGrid(app, 1), experiment, again, "inprocess")["runs"]) == 4
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_bare_flwr_run_needs_an_absolute_out():
    config = {"experiment": "quickstart.yaml", "set": "", "seeds": "", "out": "here"}
    with pytest.raises(ConfigError, match="out: expected an absolute path"):
        server_app._from_run_config(config)


def test_the_run_config_has_the_meaning_of_the_command_line(tmp_path):
    config = {
        "experiment": "quickstart.yaml",
        "set": "partition.alpha=0.5 rounds.horizon=2",
        "seeds": "7 8",
        "out": str(tmp_path),
    }
    experiment, out = server_app._from_run_config(config)
    assert (experiment.partition.alpha, experiment.rounds.horizon, experiment.seeds) == (0.5, 2, (7, 8))
    assert out == tmp_path
