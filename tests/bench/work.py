"""The work that every contestant does: the same shards, initial weights, batch size and steps."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from kdfed.config import Experiment
from kdfed.data import Examples, PreparedData, prepare
from kdfed.models import State, build_model, load_state, state_of
from kdfed.partition import make_partition
from kdfed.seeding import derive, numpy_generator
from simulations.experiments import build_experiment

SEED, BATCH, RATE, MOMENTUM = 0, 10, 0.05, 0.9

START = "KDFED_BENCH_START"
"""Environment variable: folder of each model's initial weights, MODEL.pt. Default: everybody trains them."""

IMAGES = {"mnist5k": 4000, "cifar": 2000}
"""Training images of each data set, over all participants; a fifth of all images is held out."""

MODELS: dict[str, tuple[str, str, dict[str, int]]] = {
    "cnn": ("mnist5k", "cnn", {}),
    "mlp": ("mnist5k", "mlp", {}),
    "resnet8": ("cifar", "resnet8", {"width": 8}),
    "features": ("features", "mlp", {}),
}
"""Name in tables -> data set, model, its options. ``features`` is for cost against participants."""


@dataclass(frozen=True)
class Work:
    """One configuration.

    Parameters
    ----------
    model
        Key of :data:`MODELS`.
    participants
        Everybody is sampled in every round.
    workers
        Processes, actors or threads that train; a contestant has as many cores.
    cohort_size
        Participants that kdfed trains in one call.
    batch, epochs
        Examples a step; passes over a participant's examples.
    """

    model: str
    participants: int
    workers: int = 1
    cohort_size: int = 16
    batch: int = BATCH
    epochs: int = 1

    @classmethod
    def read(cls, text: str) -> Work:
        return cls(**json.loads(text))

    def order_free(self) -> Work:
        """Return the same work with two steps on all of a participant's examples.

        The order of examples does not matter then, so everybody must arrive at the same weights.
        """
        return replace(self, batch=max(map(len, self.shards())), epochs=2)

    def write(self) -> str:
        return json.dumps(asdict(self))

    @property
    def experiment(self) -> Experiment:
        """The work as kdfed's experiment. Validation is tiny, so that evaluating it costs nothing."""
        data, name, options = MODELS[self.model]
        return build_experiment(
            {
                "name": f"bench-{self.model}-{self.participants}",
                "seeds": [SEED],
                "device": "cpu",
                "data": {"source": self._source(data), "splits": _splits(data)},
                "partition": self._partition(data),
                "model": {"name": name, "options": options},
                "local": {
                    "mode": "plain",
                    "epochs": self.epochs,
                    "batch-size": self.batch,
                    "lr": RATE,
                    "momentum": MOMENTUM,
                },
                "server": {"strategy": "fedavg", "cohort-size": self.cohort_size},
                "rounds": {"horizon": 10_000},
                "targets": [1.0],
                "arms": {"cold": {"start": "random"}},
            }
        )

    def _source(self, data: str) -> str:
        if data == "features":
            return f"synthetic:examples={2 * self.participants * 5 // 4},classes=10,shape=32"
        if data == "cifar":
            return f"synthetic:examples={IMAGES[data] * 5 // 4},classes=10,shape=3x32x32"
        return data

    def _partition(self, data: str) -> dict[str, object]:
        kind = {"kind": "uniform"} if data == "features" else {"kind": "dirichlet", "alpha": 0.5}
        return {**kind, "participants": self.participants, "min-examples": 1}

    @property
    def data(self) -> PreparedData:
        """The data; kept by kdfed, so that asking twice costs nothing."""
        return prepare(self.experiment.data)

    def shards(self) -> list[Examples]:
        """Return every participant's examples, shuffled: mnist5k lists them by class."""
        data, settings = self.data, self.experiment.partition
        partition = make_partition(settings, data.dataset.labels, data.splits.train, data.classes, SEED)
        shuffle = numpy_generator(SEED, "bench").permutation
        return [data.examples(shuffle(indices)) for indices in partition.indices]

    def steps(self) -> int:
        """Return how many local steps a round has."""
        return self.epochs * sum(-(-len(shard) // self.batch) for shard in self.shards())

    def net(self) -> nn.Module:
        """Return a model of this work, with weights that nobody starts from."""
        data = self.data
        return build_model(self.experiment.model, data.input_shape, data.classes, derive(SEED, "init"))

    def initial_state(self) -> State:
        """Return the weights that everybody starts from: trained on all examples for one epoch.

        From random weights, the first rounds differ by tens of points with the order of examples alone, and
        accuracies could not be compared.
        """
        folder = os.environ.get(START)
        if folder is None:
            return warm(self.model)
        state: State = torch.load(Path(folder) / f"{self.model}.pt")
        return state


def warm(model: str) -> State:
    """Return weights that were trained on all training examples for one epoch."""
    work = Work(model, 10)
    net, everybody = work.net(), work.shards()
    inputs = torch.cat([shard.inputs for shard in everybody])
    labels = torch.cat([shard.labels for shard in everybody])
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED)).split(BATCH):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
        optimiser.step()
    return state_of(net)


class Judge:
    """Measures test accuracy, for every contestant alike; never within a round's time."""

    def __init__(self, work: Work) -> None:
        self.model = work.net()
        self.test = work.data.examples(work.data.splits.test)

    def accuracy(self, state: State) -> float:
        """Return the share of test examples that a model gets right."""
        load_state(self.model, {key: value.detach().float() for key, value in state.items()})
        self.model.eval()
        with torch.no_grad():
            logits = torch.cat([self.model(inputs) for inputs in self.test.inputs.split(256)])
        return float((logits.argmax(1) == self.test.labels).double().mean())


def _splits(data: str) -> dict[str, float]:
    if data == "features":  # of 25 examples per 10 participants, 20 are left
        return {"test": 0.08, "evaluation": 0.04, "validation": 0.04, "transfer": 0.04}
    return {"test": 0.17, "evaluation": 0.01, "validation": 0.01, "transfer": 0.01}
