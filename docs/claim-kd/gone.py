"""MNIST-5k of which a part is gone: what is left of it is the teachers that its owners trained.

``python gone.py`` trains these teachers into ``shelf/``; ``gone:remaining`` is a source without their images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from kdfed.data import load_source, prepare
from kdfed.models import build_model, state_of
from kdfed.partition import partition_of
from kdfed.partitions.dirichlet import DirichletPartition
from kdfed.saved import Card, save
from kdfed.settings import DataSettings, ModelSettings, SplitSettings

GONE, OWNERS, SEED = 2000, 10, 2024
MODELS = (ModelSettings(name="cnn"), ModelSettings(name="mlp", options={"hidden": [64]}))


def gone(_: DataSettings) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the images that teachers learn from, uint8 [2000, 1, 28, 28], their labels and classes."""
    return _part(slice(0, GONE))


def remaining(_: DataSettings) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return all other images, uint8 [3000, 1, 28, 28], and their labels and classes."""
    return _part(slice(GONE, None))


def _part(rows: slice) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    data = load_source(DataSettings(source="mnist5k"))
    chosen = np.random.default_rng(SEED).permutation(len(data.labels))[rows]
    return data.inputs[chosen], data.labels[chosen], data.class_names


def main() -> None:
    """Train a teacher for each owner, of two architectures in turn, on its own images (Dirichlet 0.1)."""
    torch.set_num_threads(1)
    shares = SplitSettings(test=0.01, evaluation=0.01, validation=0.01, transfer=0.01)
    settings = DataSettings(source="gone:gone", shape=(1, 14, 14), splits=shares)
    data = prepare(settings)
    dealing = DirichletPartition(alpha=0.1, participants=OWNERS)
    for owner, rows in enumerate(partition_of(data, dealing, SEED).indices):
        own, choice = data.examples(rows), MODELS[owner % len(MODELS)]
        model = build_model(choice, data.input_shape, data.classes, seed=owner)
        optimiser, order = torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator().manual_seed(owner)
        for _ in range(20):
            for batch in torch.randperm(len(own), generator=order).split(10):
                optimiser.zero_grad()
                cross_entropy(model(own.inputs[batch]), own.labels[batch]).backward()
                optimiser.step()
        file = Path(__file__).parent / "shelf" / f"{owner:02}.safetensors"
        file.parent.mkdir(exist_ok=True)
        save(file, state_of(model), Card.of(choice, settings, data))
        counts = torch.bincount(own.labels, minlength=10).tolist()
        print(f"{file.name}: {choice.name}, {len(own)} images, by class {counts}")


if __name__ == "__main__":
    main()
