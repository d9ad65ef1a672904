"""How long a federated round takes: the in-process engine against a bare PyTorch loop on the same work.

Run by ``make bench``. Both train the same participants, from the same weights, for as many steps (checked),
average them, and evaluate on the validation and test splits; one thread, no other process. The ratio is what
kdfed's messages, checks and records cost. Contestants take turns; the first round of a turn warms up, and the
median of the others counts.

``bench.json`` is a flat list of objects: contestant, model, participants, workers, seconds_per_round,
participants_per_second.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from kdfed.config import Experiment, ModelSettings, build_experiment
from kdfed.data import Examples, PreparedData, prepare
from kdfed.events import ignore
from kdfed.models import build_model
from kdfed.partition import make_partition
from kdfed.records import RunFolder
from kdfed.seeding import derive
from simulations.engines import inprocess

SEED, BATCH, RATE, MOMENTUM = 0, 10, 0.05, 0.9


def experiment(model: str, participants: int, rounds: int) -> Experiment:
    return build_experiment(
        {
            "name": f"bench-{model}-{participants}",
            "seeds": [SEED],
            "device": "cpu",
            "data": {"source": "mnist5k"},
            "partition": {"kind": "uniform", "participants": participants},
            "model": {"name": model},
            "local": {"mode": "plain", "epochs": 1, "batch-size": BATCH, "lr": RATE, "momentum": MOMENTUM},
            "rounds": {"max": rounds, "stop-at-target": False},
            "targets": [1.0],
            "arms": {"cold": {"start": "random"}},
        }
    )


def engine(made: Experiment) -> tuple[list[float], int]:
    """Return seconds of each round, and local steps of all."""
    with tempfile.TemporaryDirectory() as folder:
        records = RunFolder.open_for(Path(folder) / "run", made)
        inprocess.run(made, records, nodes=1, on_event=ignore)
        rounds = records.read_rounds()
    seconds = [after.seconds - before.seconds for before, after in pairwise(rounds)]
    return seconds, rounds[-1].local_steps


def bare_loop(made: Experiment, data: PreparedData, rounds: int) -> tuple[list[float], int]:
    """Return the same, of the loop that one would write without a framework."""
    parts = make_partition(made.partition, data.dataset.labels, data.splits.train, data.classes, SEED)
    shards = [data.examples(indices) for indices in parts.indices]
    held_out = [data.examples(data.splits.validation), data.examples(data.splits.test)]
    model = build_model(
        ModelSettings(name=made.model.name), data.input_shape, data.classes, derive(SEED, "init")
    )
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    total, steps, seconds = sum(map(len, shards)), 0, []
    for _ in range(rounds):
        start = time.perf_counter()
        mean = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in weights.items()}
        for shard in shards:
            model.load_state_dict(weights)
            steps += train(model, shard)
            for key, value in model.state_dict().items():
                mean[key] += value.double() * (len(shard) / total)
        weights = {key: value.to(weights[key].dtype) for key, value in mean.items()}
        model.load_state_dict(weights)
        for split in held_out:
            evaluate(model, split)
        seconds.append(time.perf_counter() - start)
    return seconds, steps


def train(model: torch.nn.Module, shard: Examples) -> int:
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    batches = torch.randperm(len(shard)).split(BATCH)
    for batch in batches:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(shard.inputs[batch]), shard.labels[batch]).backward()
        optimiser.step()
    return len(batches)


def evaluate(model: torch.nn.Module, split: Examples) -> float:
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(inputs) for inputs in split.inputs.split(256)])
        torch.nn.functional.cross_entropy(logits, split.labels)
        return float((logits.argmax(1) == split.labels).double().mean())


def compare(model: str, participants: int, rounds: int, turns: int) -> list[dict[str, Any]]:
    made = experiment(model, participants, rounds + 1)
    data = prepare(made.data)
    seconds: dict[str, list[float]] = {"inprocess": [], "bare-loop": []}
    for _ in range(turns):
        ours, our_steps = engine(made)
        theirs, their_steps = bare_loop(made, data, rounds + 1)
        assert our_steps == their_steps, f"not the same work: {our_steps} and {their_steps} steps"
        seconds["inprocess"] += ours[1:]
        seconds["bare-loop"] += theirs[1:]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["inprocess"] / medians["bare-loop"]
    print(
        f"{model}, {participants} participants: {medians['inprocess']:.3f} s a round in-process, "
        f"{medians['bare-loop']:.3f} s in a bare loop, ratio {ratio:.2f}"
    )
    return [
        {
            "contestant": name,
            "model": model,
            "participants": participants,
            "workers": 1,
            "seconds_per_round": median,
            "participants_per_second": participants / median,
        }
        for name, median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a federated round against a bare training loop.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of bench.json")
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds a turn")
    parser.add_argument("--turns", type=int, default=2, help="turns of each contestant")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = []
    for model, participants in (("mlp", 20), ("cnn", 20), ("cnn", 100)):
        rows += compare(model, participants, options.rounds, options.turns)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "bench.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"figures: {path}")


if __name__ == "__main__":
    main()
