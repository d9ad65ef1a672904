from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load, save

from kdfed.consolidate import consolidate
from kdfed.data import prepare
from kdfed.distill import VanillaConsolidation
from kdfed.errors import ConfigError, KdfedError, RunError, RunFolderError
from kdfed.local import PLAIN
from kdfed.models import build_model
from kdfed.reading import examples_for
from kdfed.seeding import derive
from kdfed.train import fit, predict
from simulations.cli import SHIPPED, main
from simulations.study import design, load_study, run_study
from simulations.study.design import conditions, models_key, trial_key, trials
from simulations.study.jobs import (
    distil,
    generated_file,
    models_file,
    partition_at,
    pretrain,
    transfer_of,
    trial_file,
)
from simulations.study.report import render
from simulations.study.rows import rows_of
from simulations.study.running import remaining_work
from simulations.study.settings import StudySettings, Vary, read_study
from simulations.workers import run_all
from tests.setups import CPU
from tests.small_backbones import TINY as BACKBONE

pytestmark = pytest.mark.xdist_group("study")  # a study that is shared is run once

HEAD = {"backbone": BACKBONE}

TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0, 1],
    "data": {"source": "digits", "limit": 400, "splits": {"test": 0.3, "validation": 0.2, "transfer": 0.2}},
    "model": {"name": "mlp", "options": {"hidden": [8]}},
    "pretraining": {"epochs": 2, "batch-size": 16},
    "distillation": {"epochs": 2, "batch-size": 16},
    "search": {"temperatures": [1.0, 4.0], "weights": [0.5, 1.0], "rates": [0.5, 1.0], "passes": [1.0, 1.5]},
    "distributions": {
        "uniform": {"kind": "uniform"},
        "disjoint": {"kind": "label-overlap", "classes": 5, "overlap": 0.0},
    },
    "vary": {
        "teachers": [2],
        "transfer": ["own", "noise"],
        "labels": [False],
        "images": [20],
        "distributions": ["disjoint"],
    },
}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({**TINY, **changes}))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudySettings, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    study = load_study(write(folder))
    summary = run_study(study, folder / "out", workers=2)
    return study, folder / "out", summary


@pytest.mark.slow
def test_the_summary_has_a_row_for_every_condition_and_method(finished):
    study, out, summary = finished
    assert json.loads((out / "study.json").read_text()) == summary
    contract = {
        "dataset", "distribution", "transfer", "method", "temperature", "weight", "seed",
        "teacher_accuracy", "before", "after", "gain", "forgetting",
    }  # fmt: skip
    for row in summary["cells"]:
        assert contract <= row.keys()
        assert row["gain"] == pytest.approx(row["after"] - row["before"])
    for condition in conditions(study):
        methods = [
            row["method"]
            for row in summary["cells"]
            if {key: row[key] for key in condition.row()} == condition.row()
        ]
        expected = {"vanilla", "tuned", "mutual", "partitioned"}
        expected |= {"tuned-temperature", "tuned-weight"} if condition.labels else set()
        expected |= (
            {f"{m}-searched" for m in ("vanilla", "mutual", "partitioned")} if not condition.factor else set()
        )
        assert sorted(methods) == sorted(expected)
    centre = [row for row in summary["cells"] if not row["factor"]]
    assert {row["trials"] for row in centre if row["method"].endswith("-searched")} == {4}
    assert {row["trials"] for row in centre if row["method"] == "tuned"} == {4}


@pytest.mark.slow
def test_methods_of_a_condition_share_teacher_and_student(finished):
    _, _, summary = finished
    shared: dict[Any, set[Any]] = {}
    for row in summary["cells"]:
        place = (row["distribution"], row["teachers"], row["seed"])
        shared.setdefault(place, set()).add((row["teacher_accuracy"], row["before"]))
    assert {len(values) for values in shared.values()} == {1}


@pytest.mark.slow
def test_a_second_run_computes_nothing(finished):
    study, out, summary = finished
    before = {file: file.stat().st_mtime_ns for file in (out / "cache").iterdir()}
    assert remaining_work(study, out / "cache").trials == []
    assert run_study(study, out, workers=1) == summary
    assert {file: file.stat().st_mtime_ns for file in (out / "cache").iterdir()} == before


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_workers(finished, tmp_path):
    study, _, summary = finished
    small = study.model_copy(update={"seeds": (0,), "vary": Vary()})
    again = run_study(small, tmp_path / "out", workers=1)
    assert again["cells"] == [row for row in summary["cells"] if row["seed"] == 0 and not row["factor"]]


@pytest.mark.slow
def test_the_page_answers_the_questions_and_needs_no_other_file(finished):
    _, out, _ = finished
    page = (out / "study.html").read_text()
    heads = ("Which method wins where", "not tuned", "equally many trials", "Temperature alone", "Forgetting")
    for words in (*heads, "Where to start", "<svg"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert " src=" not in page
    assert '<td>disjoint</td><td class="number">1</td>' in page, "one teacher is no yes"


@pytest.mark.parametrize("changes", [{}, {"model": HEAD, "vary": {"transfer": ["own"]}}], ids=["mlp", "head"])
def test_a_trial_agrees_with_the_slow_twin(tmp_path, changes):
    """Everybody trained alone, then distilled, spelt out."""
    study = load_study(write(tmp_path, **changes))
    condition = next(
        p for p in conditions(study) if p.distribution == "disjoint" and p.seed == 1 and not p.factor
    )
    trial = next(
        t for t in trials(study, condition) if (t.method, t.temperature, t.weight) == ("vanilla", 4.0, 0.5)
    )
    pretrain(study, condition, tmp_path)
    distil(study, condition, trial, tmp_path)
    found = json.loads(trial_file(tmp_path, trial_key(study, condition, trial)).read_text())

    data, partition = prepare(study.data), partition_at(study, condition)
    models = []
    for member in (0, 1):
        seed = derive(1, "init", 0, member)
        model = build_model(condition.model, data.input_shape, data.classes, seed)
        own = examples_for(study.model, data, partition.indices[member])
        fit(model, own, study.pretraining, PLAIN, derive(1, "pretraining", 0, member))
        models.append(model)
    student, teacher = models
    test = examples_for(study.model, data, data.splits.test)
    before = predict(student, test.inputs).argmax(1) == test.labels
    assert found["before"] == pytest.approx(float(before.double().mean()), abs=0.02)
    assert found["teacher_accuracy"] == pytest.approx(
        float((predict(teacher, test.inputs).argmax(1) == test.labels).double().mean()), abs=0.02
    )
    settings = VanillaConsolidation(
        temperature=4.0, weight=0.5, labels=True, epochs=2, batch_size=16, lr=study.distillation.lr
    )
    validation = examples_for(study.model, data, data.splits.validation)
    transfer = transfer_of(study, condition, tmp_path)
    consolidate(student, [teacher], transfer, validation, settings, derive(1, "distil"), setup=CPU)
    after = predict(student, test.inputs).argmax(1) == test.labels
    assert found["after"] == pytest.approx(float(after.double().mean()), abs=0.02)
    held = torch.from_numpy(np.isin(test.labels.numpy(), data.dataset.labels[partition.indices[0]]))
    forgotten = float(before[held].double().mean() - after[held].double().mean())
    assert found["forgetting"] == pytest.approx(forgotten, abs=0.04)


def test_searches_choose_on_validation_and_never_on_test(tmp_path):
    study = load_study(write(tmp_path, seeds=[0], vary={}))
    results = {}
    for condition in conditions(study):
        for place, trial in enumerate(trials(study, condition)):
            results[trial_key(study, condition, trial)] = {
                "validation_accuracy": place / 100,
                "after": 1 - place / 100,
                "before": 0.0,
                "steps": 1,
            }
    for row in rows_of(study, results)["cells"]:
        if row["method"] == "tuned":
            assert (row["temperature"], row["weight"]) == (4.0, 1.0)
        if row["method"] == "tuned-temperature":
            assert (row["temperature"], row["weight"]) == (1.0, 0.5)


@pytest.mark.parametrize("transfer", ["public", "own", "teacher", "union", "noise", "proxy"])
def test_every_transfer_set_is_what_it_says(tmp_path, transfer):
    proxy = {"source": "synthetic:examples=500,classes=3,shape=1x8x8"}
    study = load_study(
        write(
            tmp_path,
            data={**TINY["data"], "source": "mnist5k"},
            model={"name": "mlp"},
            vary={"transfer": [transfer], "teachers": [2]} if transfer != "public" else {},
            **({"proxy": proxy} if transfer == "proxy" else {}),
        )
    )
    condition = next(p for p in conditions(study) if p.transfer == transfer)
    examples = transfer_of(study, condition, tmp_path)
    data, partition = prepare(study.data), partition_at(study, condition)
    expected = {
        "public": data.splits.transfer,
        "own": partition.indices[0],
        "teacher": partition.indices[1],
        "union": np.concatenate([partition.indices[0], partition.indices[1]]),
    }.get(transfer)
    assert examples.inputs.shape[1:] == data.input_shape
    if expected is not None:
        rows = data.examples(expected)
        assert sorted(examples.labels.tolist()) == sorted(rows.labels.tolist())
        assert examples.inputs.sum().item() == pytest.approx(rows.inputs.sum().item(), rel=1e-4)
        return
    assert not condition.labels
    assert len(examples) == len(data.splits.transfer)
    if transfer == "noise":
        assert abs(float(examples.inputs.mean())) < 0.02
        assert float(examples.inputs.std()) == pytest.approx(1.0, abs=0.02)


GENERATED: dict[str, Any] = {
    "seeds": [0],
    "methods": ["vanilla", "mutual"],
    "search": {"temperatures": [4.0], "weights": [0.5, 1.0]},
    "distributions": {"uniform": {"kind": "uniform"}},
    "generator": {"steps": 5, "batch-size": 32, "latent": 8, "width": 4},
    "vary": {"transfer": ["generated"]},
}


@pytest.mark.slow
def test_a_generated_transfer_set_is_made_once_from_the_teachers_and_kept(tmp_path):
    study, out = load_study(write(tmp_path, **GENERATED)), tmp_path / "out"
    condition = next(p for p in conditions(study) if p.transfer == "generated")
    summary = run_study(study, out, workers=1)
    rows = [row for row in summary["cells"] if row["transfer"] == "generated"]
    assert {row["method"] for row in rows} == {"vanilla", "mutual"}
    assert {row["labels"] for row in rows} == {False}
    kept = transfer_of(study, condition, out / "cache")
    pretrain(study, condition, tmp_path / "alone")
    assert torch.equal(transfer_of(study, condition, tmp_path / "alone").inputs, kept.inputs)
    again = load_study(write(tmp_path, **{**GENERATED, "weight": 1.0}))
    before = generated_file(out / "cache", study, condition).stat().st_mtime_ns
    assert remaining_work(again, out / "cache").generated == []
    assert generated_file(out / "cache", again, condition).stat().st_mtime_ns == before
    longer = load_study(write(tmp_path, **{**GENERATED, "generator": {"steps": 6}}))
    assert remaining_work(longer, out / "cache").generated == [condition]
    assert [p.transfer for p, _ in remaining_work(longer, out / "cache").trials] == ["generated"] * 2


def test_teachers_that_the_generator_cannot_read_are_refused_before_anything_runs(tmp_path):
    squeeze = {"name": "torchvision:squeezenet1_1"}
    changes = {**GENERATED, "model": squeeze, "data": {**TINY["data"], "shape": [3, 32, 32]}}
    study = load_study(write(tmp_path, **changes))
    with pytest.raises(ConfigError, match="activation-weight: expected 0: the activation loss"):
        run_study(study, tmp_path / "out")


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_where_it_stopped(tmp_path):
    slower = {"epochs": 8, "batch-size": 16}  # or it might be done before it is killed
    file, out = write(tmp_path, seeds=[0], vary={}, distillation=slower), tmp_path / "out"
    words = ["study", str(file), "--workers", "1", "--out", str(out)]
    command = [sys.executable, "-c", "from simulations.cli import main; main()", *words]
    started = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while len(list(out.glob("cache/*.json"))) < 5 and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    study = load_study(file)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cache/*.json")}
    assert len(kept) >= 5
    assert remaining_work(study, out / "cache").trials
    assert not (out / "study.json").exists()
    assert main(words) == 0
    assert (out / "study.html").exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_study_takes_its_workers_with_it(tmp_path, name):
    endless = {"epochs": 10**6, "batch-size": 16}
    file, out = write(tmp_path, seeds=[0], vary={}, pretraining=endless), tmp_path / "out"
    command = [sys.executable, "-m", "simulations.cli", "study", str(file), "--workers", "2"]
    with subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as started:
        family: list[psutil.Process] = []
        try:
            end = time.monotonic() + 100
            while not any(busy(one) for one in family) and time.monotonic() < end:
                time.sleep(0.05)
                family = psutil.Process(started.pid).children(recursive=True)
            started.send_signal(getattr(signal, name))
            _, error = started.communicate(timeout=60)
            if name == "SIGTERM":
                assert started.returncode == 143
                assert error.strip() == f"Interrupted by SIGTERM. Recorded so far: {out}"
            _, alive = psutil.wait_procs(family, timeout=30)
            assert family
            assert alive == []
        finally:
            started.kill()
            for one in psutil.wait_procs(family, timeout=0)[1]:
                one.kill()


def busy(process: psutil.Process) -> bool:
    """Return whether a worker trains: it has imported everything, which takes a second or two."""
    try:
        return process.cpu_times().user > 3
    except psutil.NoSuchProcess:
        return False


def test_a_worker_that_dies_is_an_error_that_says_what_to_change():
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context) as pool,
        pytest.raises(RunError, match=r"a worker process died.*use fewer --workers"),
    ):
        run_all(pool, os._exit, [(9,)], lambda own, result: None)


def test_a_study_whose_folder_cannot_be_written_to_computes_nothing(tmp_path, monkeypatch, capsys):
    def compute(*_: Any) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr("simulations.study.running._check_data", compute)
    file, taken = write(tmp_path), tmp_path / "taken"
    taken.write_text("a file")
    words = ["study", str(file), "--out"]
    assert main([*words, str(taken)]) == 2
    assert "expected a folder that can be written to" in capsys.readouterr().err
    taken.unlink()
    taken.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(taken)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        assert main([*words, str(taken)]) == 2
    finally:
        subprocess.run(["umount", str(taken)], check=True)
    assert "Read-only file system; choose another (--out)" in capsys.readouterr().err


SMALL: dict[str, Any] = {
    "seeds": [0],
    "methods": ["vanilla"],
    "search": {"temperatures": [4.0], "weights": [0.5]},
    "distributions": {"uniform": {"kind": "uniform"}},
    "vary": {},
}


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudySettings, Path, Path, Path]:
    """A study of one trial that was run: its settings, its folder, the trial's file and the models' file."""
    folder = tmp_path_factory.mktemp("cached")
    study = load_study(write(folder, **SMALL))
    (condition,), cache = conditions(study), folder / "cache"
    (trial,) = trials(study, condition)
    pretrain(study, condition, cache)
    distil(study, condition, trial, cache)
    models = models_file(cache, models_key(study, condition))
    return study, folder, trial_file(cache, trial_key(study, condition, trial)), models


def _changed(content: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(content), **changes}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-9],
        lambda content: b"[]",
        lambda content: b"\xff" + content,
        lambda content: b"[" * 100_000,
        lambda content: _changed(content, after=5.0),
        lambda content: _changed(content, after=float("nan")),
        lambda content: _changed(content, per_class_after=3),
        lambda content: _changed(content, steps="many"),
        lambda content: content.replace(b'"before"', b'"beforehand"'),
    ],
)
def test_a_damaged_result_in_the_cache_is_computed_again(cached, damage):
    study, out, file, _ = cached
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    ((condition, trial),) = remaining_work(study, out / "cache").trials
    distil(study, condition, trial, out / "cache")
    assert file.read_bytes() == whole
    assert len(run_study(study, out, workers=1)["cells"]) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-9],
        lambda content: b"\xff" * 100,
        lambda content: save({"mine": torch.zeros(3)}),
        lambda content: save({"0/mine": torch.zeros(3), "1/mine": torch.zeros(3)}),
        lambda content: save({k: v for k, v in load(content).items() if k.startswith("0/")}),
        lambda content: save({k: v * float("nan") for k, v in load(content).items()}),
    ],
)
def test_damaged_models_in_the_cache_are_trained_again(cached, damage):
    study, out, trial, file = cached
    whole, result = file.read_bytes(), trial.read_bytes()
    trial.unlink()
    file.write_bytes(damage(whole))
    (condition,) = remaining_work(study, out / "cache").models
    pretrain(study, condition, out / "cache")
    assert file.read_bytes() == whole
    trial.write_bytes(result)


def test_a_folder_in_the_place_of_a_result_is_refused(cached, tmp_path):
    study, _, file, models = cached
    (tmp_path / file.name).mkdir()
    (tmp_path / models.name).write_bytes(models.read_bytes())
    ((condition, trial),) = remaining_work(study, tmp_path).trials
    with pytest.raises(RunFolderError, match=f"{file.name}: expected a file that can be written"):
        distil(study, condition, trial, tmp_path)


@pytest.mark.parametrize("what", ["code_sha256", "data_sha256", "version"])
def test_other_code_other_data_and_another_torch_are_computed_anew(cached, monkeypatch, what):
    study, out, file, models = cached
    assert (remaining_work(study, out / "cache").trials, remaining_work(study, out / "cache").models) == (
        [],
        [],
    )
    if what == "version":
        monkeypatch.setattr(torch, "__version__", "0.0.1")
    else:
        monkeypatch.setattr(design, what, lambda asked: "edited")
    todo = remaining_work(study, out / "cache")
    assert (len(todo.trials), len(todo.models)) == (1, 1)
    assert todo.trial_keys.isdisjoint({file.stem, models.stem})


def test_a_trial_depends_on_the_data_of_its_proxy(tmp_path, monkeypatch):
    proxy = {"source": "synthetic:examples=500,classes=3,shape=1x8x8"}
    changes: dict[str, Any] = {"data": {**TINY["data"], "source": "mnist5k"}, "vary": {"transfer": ["proxy"]}}
    study = load_study(write(tmp_path, seeds=[0], proxy=proxy, **changes))
    asked = []
    monkeypatch.setattr(design, "data_sha256", lambda settings: asked.append(settings) or "same")
    centre, other = conditions(study)[0], next(p for p in conditions(study) if p.transfer == "proxy")
    trial_key(study, centre, trials(study, centre)[0])
    assert {settings.source for settings in asked} == {"mnist5k"}
    trial_key(study, other, trials(study, other)[0])
    assert {(settings.source, settings.shape) for settings in asked} == {
        ("mnist5k", None),
        (proxy["source"], (1, 28, 28)),
    }


def test_a_name_of_a_distribution_can_hold_anything(cached, tmp_path):
    _, _, file, _ = cached
    names = ["$\\frac", "<script>", "😀", "x" * 10_000]
    search = {"temperatures": [1.0, 4.0], "weights": [0.5, 1.0]}
    changes = {**SMALL, "methods": ["vanilla", "tuned"], "search": search}
    changes["distributions"] = {name: {"kind": "uniform"} for name in names}
    study = load_study(write(tmp_path, **changes))
    result = json.loads(file.read_bytes())
    keys = [
        trial_key(study, condition, trial)
        for condition in conditions(study)
        for trial in trials(study, condition)
    ]
    page = render(study, rows_of(study, dict.fromkeys(keys, result)))
    assert "<script" not in page
    assert "$\\frac" in page


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"temperature": 3.0}, "temperature", "search.temperatures"),
        ({"weight": 0.3}, "weight", "search.weights"),
        ({"centre": {"transfer": "noise"}}, "centre.labels", "has no labels"),
        ({"vary": {"transfer": ["proxy"]}}, "proxy", "is required"),
        ({"proxy": {"source": "digits"}}, "proxy", "has no effect"),
        (
            {"vary": {"transfer": ["proxy"]}, "proxy": {"source": "digits"}},
            "proxy.source",
            "participants hold its images",
        ),
        (
            {"centre": {"transfer": "noise", "labels": False}, "vary": {"labels": [True]}},
            "vary.labels",
            "false",
        ),
        ({"data": {"source": "digits", "columns": {"label": "y"}}}, "data.columns", "parquet"),
        ({"proxy": {"source": "digits", "shape": [1, 8, 8]}}, "proxy.shape", "has no effect"),
        ({"generator": {"steps": 9}}, "generator", "has no effect"),
        ({"centre": {"transfer": "generated"}}, "centre.labels", "has no labels"),
        ({"methods": ["tuned"]}, "methods", "'vanilla'"),
        ({"vary": {"distributions": ["uniform", "other"]}}, "vary.distributions", "'other'"),
        ({"model": {"name": "mpl"}}, "model", "mlp"),
        ({"search": {**TINY["search"], "rates": [1.0]}}, "search.rates", "2 x 2, got 1 x 2"),
        ({"pretraining": {"epochs": 0}}, "pretraining.epochs", "at least 1"),
        (
            {"data": {"splits": {"evaluation": 0.2}}},
            "data.splits.evaluation",
            "got 0.2: a study counts no rounds",
        ),
        ({"data": {"splits": {"evaluation": -1}}}, "data.splits.evaluation", "at least 0"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, key, text):
    with pytest.raises(ConfigError) as error:
        load_study(write(tmp_path, **changes))
    found = {mistake.key: mistake.message for mistake in error.value.mistakes}
    assert text in found[key]


def test_a_study_holds_out_no_evaluation_split_and_keeps_its_shares(tmp_path):
    """It counts no rounds: 15% test, 10% validation, 15% transfer, the rest for the models."""
    splits = load_study(write(tmp_path, data={"source": "digits"})).data.splits
    assert (splits.test, splits.evaluation, splits.validation, splits.transfer) == (0.15, 0, 0.1, 0.15)
    study = load_study(write(tmp_path))
    parts = prepare(study.data).splits
    assert [len(part) for part in vars(parts).values()] == [120, 0, 80, 80, 120]
    assert read_study(study.model_dump_json()) == study


@pytest.mark.parametrize("name", ["cifar10", "diabetes", "digits", "mnist5k"])
def test_shipped_studies_name_their_shares_and_hold_nothing_out_for_counting(name):
    splits = load_study(SHIPPED / f"study-{name}.yaml").data.splits
    assert splits.evaluation == 0
    assert {"test", "validation", "transfer"} <= splits.model_fields_set


def test_a_regression_without_an_evaluation_split_is_prepared():
    data = prepare(load_study(SHIPPED / "study-diabetes.yaml").data)
    assert len(data.splits.evaluation) == 0
    assert data.examples(data.splits.test).labels.isfinite().all()


def test_what_the_data_do_not_allow_is_refused_before_anything_runs(tmp_path):
    study = load_study(write(tmp_path, vary={"images": [5000]}))
    with pytest.raises(ConfigError, match="at least 5000 examples"):
        run_study(study, tmp_path / "out")
    assert not list(tmp_path.glob("out/cache/*.json"))


def test_data_that_cannot_be_learnt_from_are_refused_once_before_anything_runs(tmp_path, monkeypatch):
    calls = []

    def broken(settings):
        calls.append(settings)
        inputs = np.random.default_rng(0).normal(size=(200, 4))
        inputs[123, 2] = np.nan
        return inputs, np.arange(200) % 2, ("a", "b")

    module = types.ModuleType("broken_study")
    module.make = broken
    monkeypatch.setitem(sys.modules, "broken_study", module)
    study = load_study(write(tmp_path, data={"source": "broken_study:make"}))
    with pytest.raises(ConfigError) as error:
        run_study(study, tmp_path / "out")
    (mistake,) = error.value.mistakes
    assert mistake.key == "data.source"
    assert mistake.message.endswith("got nan as feature 2 of row 123: fill or drop such rows")
    assert len(calls) == 1
    assert not list(tmp_path.glob("out/cache/*"))


def test_the_shipped_studies_are_valid():
    files = sorted(SHIPPED.glob("study-*.yaml"))
    assert files
    for file in files:
        assert load_study(file).name == file.stem


# ----------------------------------------------------------------------------- regression

NUMBERS: dict[str, Any] = {
    "seeds": [0],
    "data": {"task": "regression", "source": "diabetes"},
    "distillation": {"ensemble": "mean-logits", "epochs": 2, "batch-size": 16},
    "search": {"temperatures": [1.0], "weights": [0.5, 1.0]},
    "temperature": 1.0,
    "methods": ["vanilla", "tuned", "mutual"],
    "vary": {"transfer": ["noise"], "distributions": ["disjoint"]},
}


@pytest.mark.slow
def test_a_study_of_a_regression_holds_r2(tmp_path):
    study = load_study(write(tmp_path, **NUMBERS))
    summary = run_study(study, tmp_path / "out", workers=1)
    assert {row["method"] for row in summary["cells"]} == {"vanilla", "tuned", "mutual"}
    data = prepare(study.data)
    sizes = np.bincount(data.strata[data.splits.test], minlength=10)
    for row in summary["cells"]:
        assert row["before"] < 1
        whole = [score for score in row["per_class_after"] if score is not None]
        assert len(whole) == 10
        assert np.average(whole, weights=sizes) == pytest.approx(row["after"]), "the parts make the whole"
    (row, *_) = [row for row in summary["cells"] if row["method"] == "vanilla"]
    condition, trial = conditions(study)[0], trials(study, conditions(study)[0])[0]
    student = pretrained(study, condition, tmp_path / "out" / "cache")
    test = data.examples(data.splits.test)
    residual = (predict(student, test.inputs)[:, 0] - test.labels).square().sum()
    around = (test.labels - test.labels.mean()).square().sum()
    assert row["before"] == pytest.approx(float(1 - residual / around), rel=1e-5)
    assert trial.temperature == 1
    page = (tmp_path / "out" / "study.html").read_text()
    assert "Gain in test R²" in page
    assert "ccuracy" not in page


def pretrained(study, condition, cache):
    from simulations.study.jobs import _models

    return _models(study, condition, cache)[0]


def test_what_a_regression_does_not_have_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_study(write(tmp_path, data={"task": "regression", "source": "diabetes"}))
    found = {mistake.key: mistake.message for mistake in error.value.mistakes}
    assert set(found) == {"methods", "distillation.ensemble", "temperature", "search.temperatures"}
    assert (
        "expected vanilla or tuned or mutual with data.task 'regression', got 'partitioned'"
        in found["methods"]
    )
    with pytest.raises(ConfigError, match=r"data.task: expected 'regression' with source 'diabetes'"):
        load_study(write(tmp_path, data={"source": "diabetes"}))


def test_a_method_that_no_trial_carries_out_is_refused_and_never_left_out_or_replaced(tmp_path):
    from simulations.study.design import Trial
    from simulations.study.jobs import _settings

    study = load_study(write(tmp_path))
    (condition, *_) = conditions(study)
    own = study.model_copy(update={"methods": ("vanilla", "own")})
    with pytest.raises(KdfedError, match=r"expected one of vanilla, .* or package.module:name, got 'own'"):
        trials(own, condition)
    with pytest.raises(KdfedError, match=r"expected one of vanilla, .* or package.module:name, got 'own'"):
        _settings(study, condition, Trial("own", 1.0, 1.0))


def test_a_search_stays_within_what_a_training_takes(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_study(
            write(tmp_path), ["distillation.lr=900", "distillation.epochs=900000", "search.rates=[1.0, 2]"]
        )
    messages = {mistake.key: mistake.message for mistake in caught.value.mistakes}
    assert "at most 1000, got 1800" in messages["search.rates"]
    assert "at most 1000000, got 1.35e+06" in messages["search.passes"]


# ----------------------------------------------------------------------------- models on a backbone


def test_images_that_a_study_draws_are_refused_with_a_frozen_backbone(tmp_path):
    with pytest.raises(ConfigError, match="expected public or proxy with a frozen backbone") as caught:
        load_study(write(tmp_path, model=HEAD))
    assert [mistake.key for mistake in caught.value.mistakes] == ["vary.transfer"]
