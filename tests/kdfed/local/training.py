"""Examples, a model and its training, for the tests of all local modes."""

from __future__ import annotations

import torch
from torch import nn

from kdfed.data import Examples
from kdfed.local import LocalMode
from kdfed.models import build_model
from kdfed.settings import ModelSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import TrainResult, fit

SHAPE = (1, 8, 8)


def some_examples(count: int = 23, classes: int = 3, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    inputs = torch.randn(count, *SHAPE, generator=generator) + labels.view(-1, 1, 1, 1)
    return Examples(inputs, labels)


def some_model(norm: str = "none", seed: int = 0) -> nn.Module:
    return build_model(ModelSettings(options={"width": 4, "norm": norm}), SHAPE, 3, seed)


def train_local(model: nn.Module, examples: Examples, settings: LocalMode, seed: int) -> TrainResult:
    return fit(model, examples, settings, settings.loss(lambda: model, CLASSIFICATION), seed)
