from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from kdfed.errors import KdfedError
from kdfed.models import MODELS, Model, Origin, build_model, check_model, find_model, is_shipped
from kdfed.models.registry import USERS
from kdfed.settings import ModelSettings
from simulations.cli import catalogue

FILES = {**{name: name.partition(":")[0] for name in MODELS}, USERS: "user"}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_a_module_of_its_own_with_a_line_for_the_list(name: str) -> None:
    module = importlib.import_module(f"kdfed.models.{FILES[name]}")
    entry = MODELS[name]
    assert entry is (module.MODELS if isinstance(entry, Origin) else module.MODEL)
    assert (module.__doc__ or "").strip()
    assert catalogue()["models (model.name)"][name] == entry.description
    assert entry.description
    assert "\n" not in entry.description


def test_one_line_adds_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def __init__(self, input_shape: tuple[int, ...], classes: int, *, factor: float = 2.0) -> None:
            super().__init__()
            self.linear, self.factor = nn.Linear(*input_shape, classes), factor

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.factor * self.linear(inputs)

    def twice(input_shape: tuple[int, ...], classes: int, *, factor: float = 2.0) -> nn.Module:
        return Twice(input_shape, classes, factor=factor)

    monkeypatch.setitem(MODELS, "twice", Model(twice, "a linear layer, twice (options: factor)"))
    model = build_model(ModelSettings(name="twice"), (4,), 3, seed=0)
    assert model(torch.zeros(2, 4)).shape == (2, 3)
    assert is_shipped("twice")
    assert catalogue()["models (model.name)"]["twice"].startswith("a linear layer")
    wrong = check_model(ModelSettings(name="twice", options={"factor": "much"}))
    assert wrong is not None
    assert "option 'factor' of 'twice'" in wrong


def test_one_line_adds_an_origin_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = Model(lambda input_shape, classes: nn.Linear(*input_shape, classes), "linear")

    def find(name: str) -> Model:
        if name != "shop:linear":
            raise KdfedError(f"the shop has no {name!r}")
        return linear

    monkeypatch.setitem(MODELS, "shop:NAME", Origin(find, "from the shop"))
    assert build_model(ModelSettings(name="shop:linear"), (4,), 3, seed=0).weight.shape == (3, 4)
    assert check_model(ModelSettings(name="shop:conv")) == "the shop has no 'shop:conv'"
    assert not is_shipped("shop:linear")


@pytest.mark.parametrize(
    "name", ["torchvision:../weights", "torchvision:", "os:system", "cnn:x", "cn", "", ":"]
)
def test_what_could_reach_other_code_is_not_shipped(name: str) -> None:
    assert not is_shipped(name)


def test_a_classifier_of_torchvision_is_the_same_each_time() -> None:
    """So that it is tried once."""
    assert find_model("torchvision:resnet18") is find_model("torchvision:resnet18")
