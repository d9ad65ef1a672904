from __future__ import annotations

import torch
from torch import nn

from kdfed.models import build_model
from kdfed.settings import ModelSettings

IMAGES = (1, 28, 28)


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


def test_the_cnn_has_the_parameters_that_its_layers_add_up_to() -> None:
    """1*8*25+8 = 208; 8*16*9+16 = 1168; 16*7*7*10+10 = 7850; together 9226."""
    model = build_model(settings("cnn"), IMAGES, 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 9226


def test_the_cnn_agrees_with_its_layers_one_by_one() -> None:
    model = build_model(settings("cnn", norm="group"), (3, 12, 12), 4, seed=0)
    inputs = torch.randn(5, 3, 12, 12)
    slow = nn.Sequential(
        model.conv1, model.norm1, nn.ReLU(), nn.MaxPool2d(2),
        model.conv2, model.norm2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), model.head,
    )  # fmt: skip
    torch.testing.assert_close(model(inputs), slow(inputs))
