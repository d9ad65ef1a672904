from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdfed.models import Units, build_model, dead_units
from kdfed.settings import ModelSettings

IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FEATURES = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
FAR_BELOW = -1e6


def a_model(name: str, **options: object) -> nn.Module:
    shape = (1, 8, 8) if name != "mlp" else (6,)
    return build_model(ModelSettings(name=name, options=options), shape, 3, 0)


def kill(layer: nn.Module, *units: int) -> None:
    """Make a layer's units far below 0, whatever comes in."""
    with torch.no_grad():
        layer.bias[list(units)] = FAR_BELOW  # type: ignore[operator, index]


def test_channels_of_functional_relus_are_found_dead() -> None:
    """Two convolutions of 4 and 8 channels, of which 1 and 2 are killed."""
    model = a_model("cnn", width=4)
    assert dead_units(model, [IMAGES]) == Units(0, of=12)
    kill(model.conv1, 2)
    kill(model.conv2, 0, 5)
    found = dead_units(model, [IMAGES])
    assert found == Units(3, of=12)
    assert found.share == 0.25


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Threshold(0.0, 0.0)])
def test_units_of_modules_are_found_dead(relu: nn.Module) -> None:
    layer = nn.Linear(6, 5)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([9.0, FAR_BELOW, 9.0, 9.0, FAR_BELOW]))
    expected = None if isinstance(relu, nn.Threshold) else Units(2, of=5)  # not seen: nothing is said
    assert dead_units(nn.Sequential(layer, relu, nn.Linear(5, 2)), [FEATURES]) == expected


def test_a_unit_that_answers_one_input_of_any_batch_is_alive() -> None:
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    model = nn.Sequential(layer, nn.ReLU())
    positive, negative = torch.ones(5, 1), -torch.ones(1, 1)
    assert dead_units(model, [positive], batch_size=2) == Units(1, of=2)
    assert dead_units(model, [positive, negative], batch_size=2) == Units(0, of=2)


def test_the_units_of_a_linear_layer_on_tokens_are_its_last_dimension() -> None:
    layer = nn.Linear(6, 5)
    kill(layer, 3)
    assert dead_units(nn.Sequential(layer, nn.ReLU()), [torch.randn(4, 7, 6)]) == Units(1, of=5)
    convolution = nn.Conv1d(6, 5, 1)
    kill(convolution, 1, 3)
    assert dead_units(nn.Sequential(convolution, nn.ReLU()), [torch.randn(4, 6, 7)]) == Units(2, of=5)


class Moody(nn.Module):
    """Goes another way from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 5), 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = functional.relu(self.layer(inputs))
        return hidden if self.calls > 1 else functional.relu(hidden)


class Broken(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    "model", [nn.Linear(6, 2), nn.Sequential(nn.Linear(6, 2), nn.GELU()), Broken(6, 2), Moody()]
)
def test_where_it_cannot_be_told_nothing_is_said_and_nothing_raises(model: nn.Module) -> None:
    assert dead_units(model.train(), [FEATURES], batch_size=16) is None
    assert model.training


def test_a_model_is_left_as_it_was() -> None:
    model = a_model("cnn", width=4, norm="batch")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert dead_units(model.eval(), [IMAGES]) is not None
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
