from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdfed.config import Experiment
from kdfed.errors import ConfigError
from kdfed.models import build_model, state_of
from kdfed.preflight import check_data
from kdfed.settings import ModelSettings
from tests.small_backbones import TINY

Build = Callable[..., Experiment]
FEATURES = "synthetic:examples=400,classes=4,shape=5"


def found(experiment: Experiment) -> dict[str, str]:
    return {mistake.key: mistake.message for mistake in check_data(experiment)}


def test_an_experiment_that_fits_its_data_has_no_mistakes(tiny: Build) -> None:
    assert check_data(tiny()) == []


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"data.source": "parquet:/no/such/file"}, "data.source", "expected a parquet file"),
        ({"partition.participants": 5000}, "partition.participants", "as examples for them"),
        ({"partition.min-examples": 100}, "partition.min-examples", "need 500 examples"),
        (
            {"partition": {"kind": "k-classes", "classes": 11, "participants": 5}},
            "partition.classes",
            "at most the 10 classes",
        ),
        ({"data.splits.test": "official"}, "data.splits.test", "has no test part of its own"),
        ({"data.classes": 4}, "data.classes", "declares 10 classes"),
        ({"data.shape": [2, 8, 8]}, "data.shape", "expected 1"),
        ({"data.normalise": {"mean": [0, 0], "std": [1, 1]}}, "data.normalise", "each of the 1 channels"),
    ],
)
def test_what_does_not_fit_the_data_is_reported_under_its_key(
    tiny: Build, changes: dict[str, Any], key: str, message: str
) -> None:
    mistakes = found(tiny(**changes))
    assert list(mistakes) == [key]
    assert message in mistakes[key]


def test_every_seed_is_dealt(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdfed import preflight

    seeds = []
    monkeypatch.setattr(preflight, "partition_of", lambda *arguments: seeds.append(arguments[-1]))
    assert check_data(tiny(seeds=[4, 9])) == []
    assert seeds == [4, 9]


def test_a_model_that_cannot_take_the_data_is_reported_once_for_all_arms(tiny: Build) -> None:
    mistakes = check_data(tiny(data={"source": FEATURES}, model={"name": "cnn", "options": {}}))
    assert [mistake.key for mistake in mistakes] == ["model"]
    assert "needs images" in mistakes[0].message


def test_an_arms_own_model_and_teachers_are_reported_in_the_arm(tiny: Build) -> None:
    cnn = {"name": "cnn", "options": {}}
    arms = {
        "cold": {"model": cnn},
        "warm": {"start": "consolidated", "teachers": {"model": [{"name": "mlp"}, cnn]}},
    }
    mistakes = found(tiny(data={"source": FEATURES}, arms=arms))
    assert list(mistakes) == ["arms.cold.model", "arms.warm.teachers.model"]


def test_a_personal_model_that_cannot_take_the_data_is_reported(tiny: Build) -> None:
    cnn = {"name": "cnn", "options": {}}
    arms = {"cold": {}, "own": {"local.mode": "mutual", "local.model": cnn}}
    mistakes = found(tiny(data={"source": FEATURES}, arms=arms))
    assert list(mistakes) == ["arms.own.local.model"]
    assert "needs images" in mistakes["arms.own.local.model"]


@pytest.fixture
def own_models(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return a module whose models end in something else than a linear layer with a bias."""
    module = types.ModuleType("models_of_the_users")
    hidden = [nn.Flatten(), nn.Linear(64, 8), nn.ReLU()]
    ends = {
        "sure": [nn.Linear(8, 10), nn.LogSoftmax(dim=1)],
        "unbiased": [nn.Linear(8, 10, bias=False)],
        "normed": [nn.Linear(8, 10), nn.BatchNorm1d(10)],
        "linear": [nn.Linear(8, 10)],
    }
    for name, end in ends.items():
        setattr(module, name, lambda end=end: nn.Sequential(*hidden, *end))
    monkeypatch.setitem(sys.modules, "models_of_the_users", module)
    return module


@pytest.mark.parametrize("name", ["sure", "unbiased", "normed"])
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"closed-form": {"head": "lda"}}, "closed-form"),
        ({"local.trainable": "body"}, "local.trainable"),
    ],
)
def test_a_model_whose_logits_no_linear_layer_makes_has_no_head(
    tiny: Build, own_models: types.ModuleType, name: str, changes: dict[str, Any], key: str
) -> None:
    arms = {"cold": {}, "other": changes}
    model = {"name": f"models_of_the_users:{name}", "options": {}}
    mistakes = found(tiny(model=model, arms=arms))
    assert list(mistakes) == [f"arms.other.{key}"]
    assert "logits are what its last torch.nn.Linear, with a bias, makes" in mistakes[f"arms.other.{key}"]
    assert "got Sequential, which has no such head; use another model" in mistakes[f"arms.other.{key}"]
    assert found(tiny(model={**model, "name": "models_of_the_users:linear"}, arms=arms)) == {}


def test_with_batch_norm_a_head_can_be_refitted_but_not_trained_alone(tiny: Build) -> None:
    """Its running statistics would change below the head; a refit reads them as an evaluation does."""
    arms = {
        "head": {"local.trainable": "head"},
        "body": {"local.trainable": "body"},
        "refitted": {"closed-form": {"at": [0, 2]}},
    }
    experiment = tiny(model={"name": "cnn", "options": {"norm": "batch", "width": 4}}, arms=arms)
    mistakes = found(experiment)
    assert list(mistakes) == ["arms.head.local.trainable"]
    assert "expected 'all' or 'body' of a model with BatchNorm" in mistakes["arms.head.local.trainable"]


def test_teachers_that_no_arm_trains_are_not_built(tiny: Build) -> None:
    cnn = {"name": "cnn", "options": {}}
    assert (
        found(tiny(data={"source": FEATURES}, teachers__model=cnn, arms__consolidated__start="random")) == {}
    )


@pytest.mark.parametrize("device", ["cuda:9", "mps"])
def test_a_device_that_this_machine_lacks_is_reported_beside_what_does_not_fit_the_data(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    mistakes = found(tiny(device=device, partition__participants=5000))
    assert set(mistakes) == {"device", "partition.participants"}
    assert f"(cpu, cuda:0), got {device!r}; choose one, or auto" in mistakes["device"]


def test_features_cannot_be_augmented(tiny: Build) -> None:
    mistakes = found(tiny(data={"source": FEATURES}, consolidation__augmentation=["flip"]))
    assert mistakes == {
        "consolidation.augmentation": "expected images to flip, got feature vectors; remove it"
    }


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("server-fit", {"start": "server"}),
        ("server.distillation", {"server.strategy": "feddf", "server.distillation.ensemble": "mean-logits"}),
    ],
)
def test_features_cannot_be_augmented_elsewhere_either(
    tiny: Build, where: str, changes: dict[str, Any]
) -> None:
    chosen = {f"{where}.augmentation": ["crop"]}
    arms = {"cold": {"start": "random"}, "other": {**changes, **chosen}}
    mistakes = found(tiny(data={"source": FEATURES}, arms=arms))
    assert mistakes == {
        f"arms.other.{where}.augmentation": "expected images to crop, got feature vectors; remove it"
    }


PROXY = {"transfer": "proxy", "proxy": {"source": "mnist5k", "limit": 100}}


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"consolidation": {**PROXY, "images": 5000}}, "proxy", "expected 5000 images of the proxy, got 65"),
        ({"consolidation": PROXY, "data": {"source": FEATURES}}, "proxy", "a proxy needs images, got inputs"),
        (
            {"consolidation": {"transfer": "proxy", "proxy": {"source": FEATURES}}},
            "proxy.source",
            "can be converted to [1, 8, 8]",
        ),
        (
            {"consolidation": {"transfer": "proxy", "proxy": {"source": "parquet:/no/such/file"}}},
            "proxy.source",
            "expected a parquet file",
        ),
        (
            {
                "consolidation": {"transfer": "generated"},
                "teachers.model": {"name": "torchvision:squeezenet1_1"},
                "data.shape": [1, 32, 32],
            },
            "generator.activation-weight",
            "expected 0: the activation loss needs a linear layer, and SqueezeNet has none",
        ),
    ],
)
def test_a_transfer_set_that_cannot_be_made_is_reported(
    tiny: Build, changes: dict[str, Any], key: str, message: str
) -> None:
    mistakes = found(tiny(**changes))
    assert list(mistakes) == [f"consolidation.{key}"]
    assert message in mistakes[f"consolidation.{key}"]


def test_weights_to_start_from_are_read_and_compared_with_the_model(tiny: Build, tmp_path: Path) -> None:
    good, other, broken = (tmp_path / f"{name}.safetensors" for name in ("good", "other", "broken"))
    for path, hidden in ((good, 16), (other, 8)):
        settings = ModelSettings(name="mlp", options={"hidden": (hidden,)})
        save_file(state_of(build_model(settings, (1, 8, 8), 10, 0)), path)
    broken.write_bytes(b"no weights")
    starts = {"good": good, "other": other, "broken": broken, "gone": tmp_path / "gone.safetensors"}
    mistakes = found(tiny(arms={name: {"start": f"file:{path}"} for name, path in starts.items()}))
    assert list(mistakes) == ["arms.other.start", "arms.broken.start", "arms.gone.start"]
    assert "shape" in mistakes["arms.other.start"]
    assert "expected a readable .safetensors file" in mistakes["arms.broken.start"]


def test_mistakes_of_data_and_of_weights_are_reported_together(tiny: Build) -> None:
    experiment = tiny(data__source="mnist6k", arms={"cold": {"start": "file:gone"}, "warm": {}})
    assert set(found(experiment)) == {"data.source", "arms.cold.start"}


def test_loading_draws_nothing_from_global_generators(tiny: Build) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    check_data(tiny(data__source="synthetic:examples=300,classes=10,shape=1x8x8", data__limit=250))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_a_users_source_is_called_once(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def make(settings: object) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        calls.append(settings)
        return np.random.default_rng(0).normal(size=(200, 3)), np.arange(200) % 2, ("a", "b")

    module = types.ModuleType("once_source")
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "once_source", module)
    experiment = tiny(data={"source": "once_source:make"})
    assert check_data(experiment) == check_data(experiment) == []
    assert len(calls) == 1


def test_weights_to_start_from_that_an_arm_would_refuse_are_found_before_anything_starts(
    tiny: Build, tmp_path: Path
) -> None:
    settings = ModelSettings(name="mlp", options={"hidden": (16,)})
    good = state_of(build_model(settings, (1, 8, 8), 10, 0))
    states = {
        "nan": {**good, "1.bias": good["1.bias"] * float("nan")},
        "inf": {**good, "1.bias": good["1.bias"] + float("inf")},
        "half": {key: value.half() for key, value in good.items()},
        "more": {**good, "extra": torch.zeros(1)},
        "fewer": {key: value for key, value in good.items() if key != "1.bias"},
    }
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    arms = {name: {"start": f"file:{tmp_path / name}.safetensors"} for name in states}
    mistakes = found(tiny(arms=arms))
    assert list(mistakes) == [f"arms.{name}.start" for name in states]
    for name, message in {
        "nan": "not finite: 1.bias",
        "inf": "not finite: 1.bias",
        "half": "wrong dtype of 1.weight: expected float32, got float16",
        "more": "unexpected ['extra']",
        "fewer": "missing ['1.bias']",
    }.items():
        assert message in mistakes[f"arms.{name}.start"]


OWN = """
from kdfed.thing import Refusal
from kdfed.partitions import UniformPartition


class Own(UniformPartition):
    most: int = 100

    def misfits(self, arm, data):
        if self.most == 0:
            raise RuntimeError("no most")
        if len(data.splits.train) > self.most:
            yield Refusal(".most", f"expected at most {self.most} examples, got {len(data.splits.train)}")
"""


@pytest.mark.parametrize(
    ("most", "key", "message"),
    [
        (100, "partition.most", "expected at most 100 examples, got 2"),
        (0, "partition", "expected own_misfits:Own to say what it refuses; it raised RuntimeError: no most"),
    ],
)
def test_a_thing_of_the_users_is_asked_whether_it_fits_the_data(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, key: str, message: str
) -> None:
    (tmp_path / "own_misfits.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    mistakes = found(tiny(partition={"kind": "own_misfits:Own", "most": most, "participants": 5}))
    monkeypatch.delitem(sys.modules, "own_misfits")
    assert list(mistakes) == [key]
    assert mistakes[key].startswith(message)


@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        (
            {"backbone": TINY, "weights": "file:/no/such.pth"},
            "model.weights",
            "/no/such.pth, which is no file",
        ),
        ({"backbone": TINY, "weights": "download"}, "model.weights", "got 'download'"),
        ({"backbone": TINY, "trainable": "last:3"}, "model.trainable", "at most last:2"),
        (
            {"backbone": TINY, "trainable": "last:1", "batch-norm": "frozen"},
            "model.batch-norm",
            "have no BatchNorm; remove it",
        ),
        ({"backbone": TINY, "size": 2}, "model.size", "to take images of 2 x 2 pixels"),
        ({"backbone": "torchvision:resnet18"}, "model.weights", "weights: download"),
        ({"backbone": "tests.small_backbones:TINY"}, "model", "tests.small_backbones:TINY"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_one_mistake(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Any, key: str, message: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    try:
        mistakes = found(tiny(model=model))
    except ConfigError as error:
        mistakes = {mistake.key: mistake.message for mistake in error.mistakes}
    assert list(mistakes) == [key]
    assert message in mistakes[key]


def test_a_backbone_needs_images(tiny: Build) -> None:
    mistakes = found(tiny(data={"source": FEATURES}, model={"backbone": TINY}))
    assert list(mistakes) == ["model.backbone"]
    assert "needs images of 1 or 3 channels, got inputs of shape (5,)" in mistakes["model.backbone"]


def test_weights_to_start_from_are_those_of_the_trained_part(tiny: Build, tmp_path: Path) -> None:
    file, backbone = tmp_path / "tail.safetensors", ModelSettings(backbone=TINY)
    save_file(state_of(build_model(backbone, (1, 8, 8), 10, 0)), file)
    changes = {"arms": {"warm": {"start": f"file:{file}"}}}
    assert found(tiny(model={"backbone": TINY}, **changes)) == {}
    assert list(found(tiny(model={"backbone": TINY, "trainable": "last:1"}, **changes))) == [
        "arms.warm.start"
    ]
