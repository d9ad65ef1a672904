"""Models on a shelf, for the tests of ``kdfed consolidate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from kdfed.data import prepare
from kdfed.models import State, build_model, state_of
from kdfed.saved import Card, save
from kdfed.settings import DataSettings, ModelSettings

DIGITS = DataSettings(source="digits")
MLP = ModelSettings(name="mlp", options={"hidden": (16,)})
SETS = ([0, 1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 0])
"""What each teacher knows; a chain of shared classes joins them."""


def card(classes: Sequence[int] = range(10)) -> Card:
    """Return what a file of a model of these digits says."""
    made = Card.of(MLP, DIGITS, prepare(DIGITS))
    return made.model_copy(update={"classes": tuple(map(str, classes))})


def trained(classes: Sequence[int], seed: int = 0, steps: int = 150) -> State:
    """Train a model of these digits."""
    data = prepare(DIGITS)
    train = data.examples(data.splits.train)
    rows = torch.isin(train.labels, torch.tensor(classes))
    inputs = train.inputs[rows]
    labels = torch.tensor([list(classes).index(int(label)) for label in train.labels[rows]])
    model = build_model(MLP, data.input_shape, len(classes), seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return state_of(model)


def shelf(folder: Path) -> list[str]:
    """Write one teacher for each of :data:`SETS`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"t{number}.safetensors" for number in range(len(SETS))]
    for number, (file, classes) in enumerate(zip(files, SETS, strict=True)):
        save(file, trained(classes, number), card(classes))
    return [str(file) for file in files]
