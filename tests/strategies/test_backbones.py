"""Experiments on a pre-trained backbone: what is trained, sent, counted and refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from clients.participants import simulated
from kdfed.arrays import spec_of
from kdfed.backbones import BackboneSettings, compute, split
from kdfed.data import Examples, prepare
from kdfed.errors import ConfigError, RunError
from kdfed.local import PLAIN
from kdfed.messages import BACKBONE, Asked, Simulation
from kdfed.models import build_model, load_state, state_of
from kdfed.seeding import derive
from kdfed.settings import ModelSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import evaluate, fit
from tests.small_backbones import OTHER, TINY, saved

HEAD = {"backbone": TINY}
LAST = {"backbone": TINY, "trainable": "last:1"}
ALL = {"backbone": TINY, "trainable": "all"}
ON_OTHER = {"backbone": OTHER}
CNN = {"name": "cnn", "options": {"width": 2}}


def weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.arrays.to_torch_state_dict())


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (HEAD, {"head.weight", "head.bias"}),
        (LAST, {"head.weight", "head.bias", "body.1.0.weight", "body.1.0.bias"}),
    ],
)
def test_only_what_is_trained_travels(tiny, run_arm, model, keys):
    experiment = tiny(model=model)
    result = run_arm(experiment)
    assert set(weights(result)) == keys
    size = sum(4 * values.numel() for values in weights(result).values())
    up = [record.bytes_up for record in result.records]
    beside = 200 * (1 + len(keys))  # bytes: what an array is, and a few numbers
    for before, after in pairwise(up):
        assert 5 * size < after - before < 5 * (size + beside)


def test_a_round_on_a_backbone_is_training_its_tail_on_its_activations_by_hand(tiny, run_arm):
    """FedAvg over one participant returns what that participant trained, to the bit."""
    experiment = tiny(model=LAST, **{"partition.participants": 1, "rounds.horizon": 1})
    data = prepare(experiment.data)
    partition = simulated(Simulation.of(experiment.arm("cold"), 3)).partition
    cut = split(BackboneSettings.of(experiment.model))
    indices = partition.indices[0]
    inputs = compute(cut, data.dataset.inputs[indices])
    model = build_model(experiment.model, data.input_shape, data.classes, derive(3, "init"))
    fit(model, Examples(inputs, data.labels(indices)), experiment.local, PLAIN, derive(3, "train", 1, 0))
    result = run_arm(experiment)
    assert all(torch.equal(value, weights(result)[key]) for key, value in state_of(model).items())
    held = data.splits.evaluation
    whole = Examples(compute(cut, data.dataset.inputs[held]), data.labels(held))
    assert result.records[1].accuracy == evaluate(model, whole, CLASSIFICATION)[0]


@pytest.mark.parametrize("model", [HEAD, LAST])
def test_a_cohort_is_its_members_one_by_one(tiny, run_arm, model):
    alone, together = (
        weights(run_arm(tiny(model=model, **{"server.cohort-size": size, "rounds.horizon": 2})))
        for size in (1, 5)
    )
    for key, values in alone.items():
        torch.testing.assert_close(together[key], values, rtol=1e-4, atol=1e-6)


def test_what_is_frozen_is_computed_once_for_all_rounds_and_arms(tiny, run_arm, fresh_features):
    experiment = tiny(model=HEAD, **{"rounds.horizon": 1})
    run_arm(experiment)
    computed = fresh_features.runs
    assert computed == 5, "four held-out splits, and one run of participants"
    run_arm(tiny(model=HEAD, **{"rounds.horizon": 4}), "consolidated")
    assert fresh_features.runs == computed


STARTS: dict[str, dict[str, Any]] = {
    "consolidated": {},
    "logits": {"teachers.upload": "logits"},
    "own draws": {"teachers.init": "own"},
    "validated": {"consolidation.ensemble": "validated"},
    "tuned": {"consolidation": {"method": "tuned", "epochs": 1}},
    "partitioned": {"consolidation.method": "partitioned"},
    "mutual": {"consolidation.method": "mutual"},
    "averaged": {"arms": {"consolidated": {"start": "averaged"}}},
    "server": {"arms": {"consolidated": {"start": "server"}}},
    "proxy": {
        "consolidation": {
            "transfer": "proxy",
            "proxy": {"source": "synthetic:shape=1x8x8,classes=3,examples=300"},
        }
    },
    "views": {"consolidation": {"augmentation": ["crop", "flip"], "views": 2}},
}


@pytest.mark.parametrize("model", [HEAD, LAST, ALL], ids=["head", "last", "all"])
@pytest.mark.parametrize("start", STARTS)
def test_every_start_works_on_a_backbone(tiny, run_arm, start, model):
    changes = {**STARTS[start], "model": model, "rounds.horizon": 1}
    result = run_arm(tiny(only="consolidated", **changes), "consolidated")
    assert len(result.records) == 2
    assert all(bool(values.isfinite().all()) for values in weights(result).values())


@pytest.mark.parametrize("strategy", ["feddf", "fedmd", "ds_fl", "fedavgm"])
def test_strategies_work_on_a_backbone(tiny, run_arm, strategy):
    changes: dict[str, Any] = {"server.strategy": strategy, "model": HEAD, "rounds.horizon": 3}
    if strategy == "feddf":
        changes["server.distillation"] = {"augmentation": ["flip"], "views": 2, "epochs": 1}
    if strategy in ("fedmd", "ds_fl"):
        changes |= {"server.images": 20, "server.models": [HEAD, ON_OTHER, CNN]}
    result = run_arm(tiny(**changes))
    assert [record.answered for record in result.records] == [0, 5, 5, 5]


@pytest.mark.parametrize(
    "local",
    [
        {"mode": "plain"},
        {"mode": "proximal", "mu": 0.1},
        {"mode": "kd"},
        {"mode": "ntd"},
        {"mode": "mutual"},
        {"mode": "mutual", "model": HEAD},
    ],
    ids=str,
)
def test_local_modes_work_on_a_backbone(tiny, run_arm, local):
    changes = {"server.strategy": "fedprox"} if local["mode"] == "proximal" else {}
    result = run_arm(tiny(model=HEAD, local={**local, "batch-size": 8}, **changes, **{"rounds.horizon": 2}))
    assert [record.answered for record in result.records] == [0, 5, 5]


@pytest.mark.parametrize("student", [CNN, HEAD, LAST], ids=["cnn", "head", "last"])
@pytest.mark.parametrize("changes", [{}, {"consolidation.augmentation": ["crop"], "consolidation.views": 2}])
def test_teachers_of_other_backbones_are_asked_on_what_they_read_themselves(tiny, run_arm, student, changes):
    experiment = tiny(
        only="consolidated",
        model=student,
        **{"teachers.model": [HEAD, ON_OTHER, CNN], "rounds.horizon": 0, **changes},
    )
    result = run_arm(experiment, "consolidated")
    assert result.consolidation.ensemble_accuracy is not None
    assert 0 < result.consolidation.ensemble_accuracy <= 1


def test_the_same_teachers_give_the_same_student_whether_they_are_asked_apart_or_not(
    tiny, run_arm, monkeypatch
):
    from strategies.teachers import TeacherPhase

    changes = {"rounds.horizon": 0, "model": HEAD}
    together = weights(run_arm(tiny(**changes), "consolidated"))
    ask, asked = TeacherPhase._logits, []

    def logits(self: TeacherPhase, *arguments: Any) -> Any:
        asked.append(1)
        return ask(self, *arguments)

    monkeypatch.setattr(TeacherPhase, "_logits", logits)
    same = ModelSettings(**HEAD, weights="installed", size=8)  # another text, the same network
    apart = weights(run_arm(tiny(**changes, **{"teachers.model": same.model_dump()}), "consolidated"))
    assert asked
    for key, values in together.items():
        torch.testing.assert_close(apart[key], values, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------- counting


def test_a_backbone_that_is_not_installed_is_counted_once_a_participant(tiny, run_arm, tmp_path):
    down = {}
    for given in ("installed", saved(tmp_path)):
        experiment = tiny(only="consolidated", model={**HEAD, "weights": given}, **{"teachers.count": 3})
        records = run_arm(experiment, "consolidated").records
        model = experiment.model.model_dump_json()
        # Settings travel too, and a path is longer than a word.
        messages = (3, 8, 13, 18)
        down[given] = [r.bytes_down - count * len(model) for r, count in zip(records, messages, strict=True)]
    installed, sent = down.values()
    frozen = split(BackboneSettings(backbone=TINY)).frozen_bytes
    assert frozen == 4 * (3 * 6 * 9 + 6 + 4 * 6 + 6 * 3 * 9 + 3) + 8
    more = [after - before for after, before in zip(sent, installed, strict=True)]
    assert more == [3 * frozen, 5 * frozen, 5 * frozen, 5 * frozen]


def test_a_participant_with_other_weights_says_so(tiny, run_arm, monkeypatch):
    config = Asked.config
    monkeypatch.setattr(Asked, "config", lambda self: {**config(self), BACKBONE: "f" * 64})
    with pytest.raises(RunError, match=r"expected the weights of .* that the server has, SHA-256 ffff"):
        run_arm(tiny(model=HEAD))


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        (
            {"model": {"backbone": TINY, "name": "cnn"}},
            "model",
            "expected no name, or linear, beside a backbone",
        ),
        ({"model": {"name": "cnn", "size": 8}}, "model", "expected a backbone beside size"),
        (
            {"model": {"name": "cnn", "batch-norm": "frozen"}},
            "model",
            "expected a backbone beside batch-norm",
        ),
        (
            {"model": {**HEAD, "batch-norm": "frozen"}},
            "model",
            "expected trainable: last:N or all beside batch-norm",
        ),
        ({"model": {**LAST, "batch-norm": "no"}}, "model.batch-norm", "frozen"),
        (
            {"model": {"backbone": "nobody"}},
            "model",
            "torchvision:NAME or package.module",
        ),
        ({"model": {"backbone": "tests.small_backbones:None_"}}, "model", "None_"),
        ({"model": {**HEAD, "trainable": "last:0"}}, "model.trainable", "not valid"),
        ({"model": HEAD, "consolidation.transfer": "noise"}, "consolidation.transfer", "public or proxy"),
        ({"model": LAST, "consolidation.transfer": "generated"}, "consolidation.transfer", "public or proxy"),
        (
            {"model": HEAD, "consolidation.augmentation": ["flip"]},
            "consolidation.views",
            "expected a number of views with augmentation and a backbone",
        ),
        (
            {"model": CNN, "teachers.model": HEAD, "consolidation.method": "mutual"},
            "consolidation.method",
            "expected teachers with the student's backbone, cut at the same place",
        ),
        (
            {"model": HEAD, "local": {"mode": "mutual", "model": CNN}},
            "local.model",
            "expected a personal model that reads what the federated one reads",
        ),
        (
            {"model": HEAD, "server": {"strategy": "feddf", "distillation": {"augmentation": ["flip"]}}},
            "server.distillation.views",
            "expected a number of views",
        ),
        (
            {"model": HEAD, "arms.cold.start": "server", "server-fit.augmentation": ["flip"]},
            "server-fit.augmentation",
            "expected none with a backbone",
        ),
    ],
    ids=str,
)
def test_what_a_backbone_cannot_be_put_together_with_is_refused(tiny, changes, key, message):
    with pytest.raises(ConfigError) as caught:
        tiny(**changes)
    (mistake,) = caught.value.mistakes
    assert mistake.key.endswith(key)
    assert message in mistake.message


def test_a_backbone_of_which_nothing_is_frozen_takes_noise(tiny, run_arm):
    experiment = tiny(model=ALL, **{"consolidation.transfer": "noise", "rounds.horizon": 0})
    assert len(run_arm(experiment, "consolidated").records) == 1


def test_state_of_a_tail_fits_what_a_run_leaves(tiny, run_arm):
    experiment = tiny(model=LAST)
    data = prepare(experiment.data)
    model = build_model(experiment.model, data.input_shape, data.classes, 0)
    state = weights(run_arm(experiment))
    assert spec_of(state) == spec_of(state_of(model))
    load_state(model, state)
