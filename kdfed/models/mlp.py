"""A multilayer perceptron, for features and small images."""

from __future__ import annotations

import torch
from torch import nn

from kdfed.inputs import SPARING
from kdfed.models.model import Model
from kdfed.settings import PositiveInt


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them.

    Parameters
    ----------
    input_shape
        Any shape; inputs are flattened.
    classes
        Number of logits.
    hidden
        Width of each hidden layer.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, *, hidden: tuple[PositiveInt, ...] = (64,)
    ) -> None:
        width = int(torch.Size(input_shape).numel())
        layers: list[nn.Module] = [nn.Flatten()]
        for following in hidden:
            layers += [nn.Linear(width, following), nn.ReLU()]
            width = following
        super().__init__(*layers, nn.Linear(width, classes))


SPARING.add(MLP)

MODEL = Model(MLP, "fully connected layers, for features and small images (options: hidden)")
