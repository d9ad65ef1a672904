"""Arms whose teachers exist already: what is read, refused, counted and told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.averaging import average_states
from kdfed.config import Experiment
from kdfed.data import prepare
from kdfed.errors import ConfigError, KdfedError, LogitsError
from kdfed.models import build_model, state_of
from kdfed.preflight import check_data
from kdfed.records import RunFolder, models_sha256, weights_sha256
from kdfed.saved import Card, load, save
from simulations.cli import main
from simulations.consolidating import Request, plan_of, run_plan
from simulations.experiments import build_experiment, load_experiment
from strategies.arm_config import ArmConfig
from tests.shelf_files import CNN, HEAD, LAST, MLP, ON_OTHER, UNTRAINED, Build, with_teachers, written


def weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.arrays.to_torch_state_dict())


@pytest.mark.parametrize(
    ("student", "teachers"),
    [
        (MLP, [MLP, MLP, MLP]),
        (MLP, [MLP, CNN]),
        (HEAD, [HEAD, HEAD]),
        (LAST, [LAST, HEAD, CNN]),
        (CNN, [HEAD, ON_OTHER]),
        (HEAD, [ON_OTHER, CNN]),
    ],
    ids=["alike", "two models", "heads", "three cuts", "on a cnn", "others"],
)
@pytest.mark.parametrize("changes", [{}, {"consolidation.augmentation": ["crop"], "consolidation.views": 2}])
def test_a_run_and_kdfed_consolidate_make_the_same_student_of_the_same_files(
    tiny: Build, run_arm: Any, tmp_path: Path, student: Any, teachers: Any, changes: dict[str, Any]
) -> None:
    files = written(tmp_path, tiny(), *teachers)
    experiment = with_teachers(tiny, files, model=student, **{"rounds.horizon": 0, **changes})
    assert check_data(experiment) == []
    data, arm = prepare(experiment.data), experiment.arm("consolidated")
    words = [json.dumps(one) if isinstance(one, dict) else one for one in files]
    plan = plan_of(
        Request(
            words, json.dumps(student), "digits", tmp_path / "out.safetensors", assignments=["device=cpu"]
        )
    )
    held = replace(data, splits=replace(data.splits, train=np.empty(0, np.int64)))  # the same transfer set
    model = build_model(arm.model, data.input_shape, data.classes, derived(experiment))
    outcome = run_plan(replace(plan, arm=arm, data=held, student=model, seed=experiment.seeds[0]))
    result = run_arm(experiment, "consolidated")
    assert weights_sha256(weights(result)) == weights_sha256(outcome.state)
    assert weights_sha256(outcome.state) != weights_sha256(weights(run_arm(tiny(model=student), "cold")))


def derived(experiment: Experiment) -> int:
    from kdfed.seeding import derive

    return derive(experiment.seeds[0], "init")


def test_nothing_is_trained_sent_or_counted_for_teachers_that_exist(
    tiny: Build, run_arm: Any, tmp_path: Path
) -> None:
    files = written(tmp_path, tiny(), MLP, MLP)
    told: list[str] = []
    result = run_arm(
        with_teachers(tiny, files), "consolidated", on_event=lambda event: told.append(event.phase)
    )
    cold = run_arm(tiny(only="consolidated", arms={"consolidated": {"start": "random"}}), "consolidated")
    for ours, theirs in zip(result.records, cold.records, strict=True):
        for cost in ("exchanges", "participant_uploads", "bytes_up", "bytes_down", "local_steps", "answered"):
            assert getattr(ours, cost) == getattr(theirs, cost)
    assert "consolidate" in told
    assert "teachers" not in told
    assert result.records[0].absent == ()


def test_averaged_teachers_are_the_mean_of_the_files(tiny: Build, run_arm: Any, tmp_path: Path) -> None:
    files = written(tmp_path, tiny(), MLP, MLP, MLP)
    arms = {"consolidated": {"start": "averaged"}}
    result = run_arm(with_teachers(tiny, files, arms=arms, **{"rounds.horizon": 0}), "consolidated")
    mean = average_states([load(file, device="cpu").model.state_dict() for file in files], [1.0] * 3)
    assert all(torch.equal(value, mean[key]) for key, value in weights(result).items())


def test_teachers_of_some_classes_and_other_backbones_are_completed_from_all_the_others(
    tiny: Build, run_arm: Any, tmp_path: Path
) -> None:
    """A teacher of two classes that alone reads its own inputs must not make the other eight unlikely."""
    base = tiny()
    (tmp_path / "a").mkdir()
    files = written(tmp_path, base, CNN, CNN) + written(tmp_path / "a", base, HEAD, classes=("3", "4"))
    experiment = with_teachers(tiny, files, model=CNN, **{"rounds.horizon": 0})
    from kdfed.distill import stacks
    from kdfed.reading import examples_for
    from kdfed.shelf import teachers_of

    data, arm = prepare(experiment.data), experiment.arm("consolidated")
    found = list(teachers_of(arm, Card.of(arm.model, arm.data, data)).values())
    (logits_KNC,) = stacks.logits_apart(
        [one.model for one in found],
        [one.settings.reads for one in found],
        lambda k: [examples_for(found[k].settings, data, data.splits.validation).inputs],
    )
    rest = [0, 1, 2, 5, 6, 7, 8, 9]
    q_KNC = logits_KNC.double().softmax(2)
    mean = q_KNC.mean(0)
    torch.testing.assert_close(q_KNC[2][:, rest], mean[:, rest], rtol=1e-4, atol=1e-6)
    assert run_arm(experiment, "consolidated").consolidation.ensemble_accuracy is not None


# ----------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("student", "teachers", "changes", "key", "says"),
    [
        (MLP, [MLP, CNN], {"arms": {"consolidated": {"start": "averaged"}}}, "start", "got others in"),
        (MLP, [MLP, CNN], {"consolidation.init": "averaged"}, "consolidation.method", "init 'averaged'"),
        (CNN, [HEAD], {"consolidation.transfer": "noise"}, "consolidation.transfer", "public or proxy"),
        (CNN, [HEAD], {"consolidation.method": "mutual"}, "consolidation.method", "read what the student"),
        (CNN, [HEAD], {"consolidation.augmentation": ["flip"]}, "consolidation.views", "number of views"),
    ],
)
def test_what_files_cannot_serve_is_one_mistake_before_the_start(
    tiny: Build, tmp_path: Path, student: Any, teachers: Any, changes: Any, key: str, says: str
) -> None:
    files = written(tmp_path, tiny(), *teachers)
    (mistake,) = check_data(with_teachers(tiny, files, model=student, **changes))
    assert mistake.key.endswith(key)
    assert says in mistake.message


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"epochs": 3}, "epochs"),
        ({"epochs": 10}, "epochs"),
        ({"batch-size": 3}, "batch-size"),
        ({"lr": 0.3}, "lr"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"weight-decay": 0.1}, "weight-decay"),
        ({"init": "own"}, "init"),
    ],
)
def test_a_key_of_training_beside_files_is_a_mistake_wherever_it_stands(
    keys: dict[str, Any], key: str
) -> None:
    values = {"name": "x", "data": {"source": "digits"}, "arms": {"a": {"start": "consolidated"}}}
    files, said = {"from": ["a.pt"]}, f"teachers.{key}: has no effect with teachers.from: nothing is trained"

    def refused(teachers: Any, arm: Any) -> list[str]:
        arms = {"a": {"start": "consolidated", **arm}}
        with pytest.raises(ConfigError) as caught:
            build_experiment({**values, "teachers": teachers, "arms": arms})
        return [str(mistake) for mistake in caught.value.mistakes]

    (top,) = refused({**files, **keys}, {})
    (beside,) = refused({}, {"teachers": {**files, **keys}})
    assert top.startswith(said)
    assert beside.startswith(f"arms.a.{said}")
    assert refused({}, {f"teachers.{one}": value for one, value in {**files, **keys}.items()}) == [beside]
    if keys != {"epochs": 10}:  # which others may need, and a resolved experiment says
        assert refused(files, {"teachers": keys}) == refused(keys, {"teachers": files}) == [beside]


def test_the_keys_of_a_resolved_file_beside_files_are_no_mistakes(tiny: Build, tmp_path: Path) -> None:
    experiment = with_teachers(tiny, written(tmp_path, tiny(), MLP))
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert "epochs: 10" in experiment.to_yaml()
    assert load_experiment(tmp_path / "again.yaml") == experiment


def test_the_steps_of_teachers_that_exist_cannot_be_made_by_a_control(tiny: Build) -> None:
    teachers = {"from": ["a.pt"], **UNTRAINED}
    with pytest.raises(ConfigError, match="nobody knows theirs: remove it"):
        tiny(teachers=teachers, controls=["longer", "server"])
    assert set(tiny(teachers=teachers, controls=["averaged", "server"]).arms) >= {"averaged", "server"}


def test_weights_that_give_no_finite_logits_end_the_arm(tiny: Build, run_arm: Any, tmp_path: Path) -> None:
    """Those of images of one colour are finite: what is tried before the start."""
    experiment = tiny()
    data = prepare(experiment.data)
    model = build_model(experiment.model, data.input_shape, data.classes, 0)
    signs = torch.tensor([1.0, -1.0]).repeat(32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.ndim == 1 else parameter.fill_(1e30)
        next(model.parameters()).copy_(1e30 * signs)
    save(tmp_path / "huge.safetensors", state_of(model), Card.of(experiment.model, experiment.data, data))
    with pytest.raises(LogitsError):
        run_arm(with_teachers(tiny, str(tmp_path)), "consolidated")


def test_a_server_that_does_not_know_what_files_must_fit_says_so(
    tiny: Build, run_arm: Any, tmp_path: Path
) -> None:
    experiment = with_teachers(tiny, written(tmp_path, tiny(), MLP))
    assert ArmConfig.card is None
    with pytest.raises(KdfedError, match=r"expected ArmConfig\.card"):
        run_arm(experiment, "consolidated", card=None)


# ----------------------------------------------------------------------------- what is told


@pytest.mark.slow
def test_the_records_and_the_page_say_that_training_is_sunk(
    tiny: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path, tiny(), MLP, MLP)
    arms = {
        "cold": {"start": "random"},
        "shelf": {"start": "consolidated", "teachers": {"from": files}},
        "mean": {"start": "averaged", "teachers": {"from": str(tmp_path)}},
        "solved": {
            "start": "consolidated",
            "teachers": {"from": files},
            "closed-form": {"at": ["before-teachers", 0]},
        },
    }
    experiment = tiny(arms=arms, teachers=UNTRAINED, **{"rounds.horizon": 2})
    (tmp_path / "e.yaml").write_text(experiment.to_yaml())
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "e.yaml"), "--out", str(out), "--engine", "inprocess"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sunk"] == [
        {"arm": "shelf", "from": files},
        {"arm": "mean", "from": [str(tmp_path)]},
        {"arm": "solved", "from": files},
    ]
    said = "The teachers of shelf and mean and solved existed already"
    page = (out / "report.html").read_text()
    assert said in page
    assert "start: hello, teachers that existed, consolidation" in page
    assert said in " ".join(capsys.readouterr().out.split())
    head = "a head in closed form"
    assert f"start: hello, {head}, teachers that existed, consolidation, {head}" in page
    starts = {record.arm: record for record in RunFolder(out).read_rounds() if record.round == 0}
    assert starts["consolidated"].exchanges == 1
    assert starts["shelf"].exchanges == starts["mean"].exchanges == starts["cold"].exchanges == 0
    assert starts["solved"].exchanges == 2
    made_of = {outcome.arm: outcome.versions for outcome in RunFolder(out).read_outcomes()}
    for arm, paths in (("shelf", files), ("mean", [str(tmp_path)]), ("cold", [])):
        expected = {path: models_sha256(path) for path in paths}
        assert {path: value for path, value in made_of[arm].items() if "/" in path} == expected
    assert main(["report", str(out)]) == 0


@pytest.mark.slow
def test_a_run_is_gone_on_with_whose_experiment_was_written_before_files_could_be_named(
    tiny: Build, tmp_path: Path
) -> None:
    experiment = tiny(**{"rounds.horizon": 1})
    text = experiment.to_yaml()
    assert "  from: null\n" in text
    folder, file = tmp_path / "out", tmp_path / "e.yaml"
    file.write_text(text)
    assert main(["run", str(file), "--out", str(folder), "--engine", "inprocess"]) == 0
    (folder / "experiment.yaml").write_text(text.replace("  from: null\n", ""))
    (folder / "summary.json").unlink()
    assert main(["run", str(file), "--out", str(folder), "--engine", "inprocess"]) == 0


@pytest.mark.slow
def test_a_run_does_not_replace_the_models_that_teach_it(tiny: Build, tmp_path: Path) -> None:
    experiment = tiny(**{"rounds.horizon": 1})
    (tmp_path / "e.yaml").write_text(experiment.to_yaml())
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "e.yaml"), "--out", str(out), "--engine", "inprocess"]) == 0
    for where in (str(out / "models"), [str(out / "models" / "consolidated-3.safetensors")]):
        (tmp_path / "f.yaml").write_text(with_teachers(tiny, where).to_yaml())
        command = ["run", str(tmp_path / "f.yaml"), "--out", str(out), "--engine", "inprocess", "--overwrite"]
        assert main(command) == 2


def test_an_experiment_with_files_can_be_built_again_from_what_it_writes(tiny: Build, tmp_path: Path) -> None:
    from kdfed.config.document import parse

    experiment = with_teachers(tiny, written(tmp_path, tiny(), HEAD, MLP), model=MLP)
    values: Any = parse(experiment.to_yaml())
    assert build_experiment(values) == experiment


def test_a_tuning_trial_reads_the_same_files(tiny: Build, tmp_path: Path) -> None:
    from simulations.tuning.trial import run_trial

    experiment = with_teachers(tiny, written(tmp_path, tiny(), MLP, MLP))
    result = run_trial(experiment, "consolidated", 7, 1, 0.2)
    assert result.reason == ""
    assert result.curve is not None
    assert result.curve.exchanges[0] == 0
