"""The loop that one would write without a framework: the limit of every sequential engine."""

from __future__ import annotations

import torch
from work import MOMENTUM, RATE, Work

from contestants.gate import Gate
from kdfed.data import Examples


def main(work: Work, gate: Gate) -> None:
    model = work.net()
    shards = work.shards()
    total = sum(map(len, shards))
    weights = work.initial_state()
    while True:
        gate.wait()
        steps = 0
        mean = {key: torch.zeros_like(value) for key, value in weights.items()}
        for shard in shards:
            model.load_state_dict(weights)
            steps += train(model, shard, work)
            for key, value in model.state_dict().items():
                mean[key].add_(value, alpha=len(shard) / total)
        weights = mean
        gate.done(lambda: mean, steps)  # noqa: B023 - called at once


def train(model: torch.nn.Module, shard: Examples, work: Work) -> int:
    """Train in place; return the number of steps."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    steps = 0
    for _ in range(work.epochs):
        for rows in torch.randperm(len(shard)).split(work.batch):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(shard.inputs[rows]), shard.labels[rows]).backward()
            optimiser.step()
            steps += 1
    return steps
