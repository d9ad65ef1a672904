"""Participants a second on a GPU and on a CPU: one by one, folded, and in folds of several widths.

    python tests/bench/gpu.py [--devices cpu cuda] [--out FILE]

Every figure is the best of three, on one thread of the CPU. ``steps`` is one step of participants with full
batches, in one fold: ``kdfed.cohort.levels.MOST_FOLDED`` and ``STEP_OVERHEAD`` are read off it. ``cohorts``
is one epoch of a skewed split of 4,000 images, for every participant's weights, and for their weighted mean
alone (``sums``). Rows are printed as they come, and written to ``--out`` as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdfed.cohort import levels, train_cohort
from kdfed.data import Examples
from kdfed.device import exact_convolutions
from kdfed.local import PLAIN
from kdfed.models import build_model, state_of
from kdfed.settings import ModelSettings, OptimiserSettings
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION

MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "cnn 14x14": ({"name": "cnn"}, (1, 14, 14), 20),
    "cnn 28x28": ({"name": "cnn"}, (1, 28, 28), 10),
    "cnn width 16": ({"name": "cnn", "options": {"width": 16}}, (3, 32, 32), 32),
    "mlp": ({"name": "mlp"}, (1, 28, 28), 10),
    "resnet8 width 8": ({"name": "resnet8", "options": {"width": 8}}, (3, 32, 32), 32),
}
"""Name -> model, shape of an image, batch size. The first is the quickstart's, the third CIFAR-10's."""

WIDTHS = (1, 4, 8, 16, 24, 50, 100, 300)
IMAGES = 4000
STEPS = 4


def best(run: Callable[[], object], times: int = 3) -> float:
    """Return the shortest of some times, in seconds, after one that does not count."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def limits(**changed: float) -> Iterator[None]:
    """Change limits of :mod:`kdfed.cohort.levels` for every device."""
    before = {name: getattr(levels, name) for name in changed}
    for name, value in changed.items():
        old = before[name]
        setattr(levels, name, dict.fromkeys(old, value) if isinstance(old, dict) else value)
    try:
        yield
    finally:
        for name, old in before.items():
            setattr(levels, name, old)


class Work:
    """Participants of one model on one device."""

    def __init__(self, name: str, device: str, sizes: list[int]) -> None:
        settings, self.shape, self.batch = MODELS[name]
        self.setup = Setup(CLASSIFICATION, torch.device(device), threads=1, precision="float32")
        self.model = build_model(ModelSettings.model_validate(settings), self.shape, 10, 0).to(device)
        self.start = {key: value.cpu() for key, value in state_of(self.model).items()}
        generator = torch.Generator().manual_seed(0)
        self.sizes = sizes
        inputs = torch.randn(sum(sizes), *self.shape, generator=generator)
        self.examples = Examples(inputs, torch.randint(10, (len(inputs),), generator=generator)).to(device)

    def train(self, *, sums: bool = False) -> None:
        """One epoch of all of them in one cohort."""
        local = OptimiserSettings(epochs=1, batch_size=self.batch, lr=0.01, momentum=0.9)
        seeds = list(range(len(self.sizes)))
        for _ in train_cohort(
            self.model, self.start, self.examples, self.sizes, local, PLAIN, seeds,
            setup=self.setup, sums=sums,
        ):  # fmt: skip
            pass

    def one_by_one(self) -> None:
        """One epoch of each of them in a cohort of its own."""
        local = OptimiserSettings(epochs=1, batch_size=self.batch, lr=0.01, momentum=0.9)
        end = 0
        for index, size in enumerate(self.sizes):
            part = Examples(self.examples.inputs[end : end + size], self.examples.labels[end : end + size])
            end += size
            for _ in train_cohort(
                self.model, self.start, part, [size], local, PLAIN, [index], setup=self.setup
            ):
                pass

    def peak(self) -> float:
        """Return the most memory that one training takes on the GPU, in MiB; 0 on a CPU."""
        if self.setup.device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        self.train()
        return torch.cuda.max_memory_allocated() / 2**20


def steps(name: str, device: str) -> Iterator[dict[str, Any]]:
    """Yield milliseconds of a step for every width of a fold."""
    for width in WIDTHS:
        batch = MODELS[name][2]
        work = Work(name, device, [STEPS * batch] * width)
        with limits(MOST_FOLDED=10**6, FOLD_BYTES=2**40, HEAVY_STEP=float("inf")):
            seconds = best(work.train if width > 1 else work.one_by_one) / STEPS
        plan = levels.plan_for(work.model, work.shape, batch)
        yield {
            "section": "steps", "model": name, "device": device, "width": width,
            "ms_a_step": seconds * 1e3, "participant_steps_a_second": width / seconds,
            "multiply_adds_a_step": plan.cost.multiply_adds * batch * width, "peak_mib": work.peak(),
        }  # fmt: skip


def cohorts(name: str, device: str, participants: int) -> Iterator[dict[str, Any]]:
    """Yield participants a second, one by one and together."""
    draw = np.random.default_rng(0)
    shares = draw.dirichlet([0.5 * 10] * participants)  # sizes as skewed labels of ten classes leave them
    sizes = [max(1, round(IMAGES * share)) for share in shares]
    work = Work(name, device, sizes)
    ways: dict[str, Callable[[], object]] = {
        "one by one": work.one_by_one,
        "cohort": work.train,
        "cohort, sums": lambda: work.train(sums=True),
    }
    plan = levels.plan_for(work.model, work.shape, work.batch)
    for way, run in ways.items():
        seconds = best(run, 2)
        yield {
            "section": "cohorts", "model": name, "device": device, "participants": participants,
            "way": way, "level": plan.level, "seconds": seconds,
            "participants_a_second": participants / seconds,
            "peak_mib": work.peak() if way == "cohort" else 0.0,
        }  # fmt: skip


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=["cnn 14x14", "cnn 28x28", "cnn width 16"])
    parser.add_argument("--sections", nargs="+", default=["steps", "cohorts"])
    parser.add_argument("--participants", nargs="+", type=int, default=[100, 300])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    exact_convolutions()
    for device in options.devices:
        for name in options.models:
            rows: list[Iterator[dict[str, Any]]] = []
            if "steps" in options.sections:
                rows.append(steps(name, device))
            if "cohorts" in options.sections:
                rows += [cohorts(name, device, count) for count in options.participants]
            for row in (row for part in rows for row in part):
                line = json.dumps(
                    {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
                )
                print(line, flush=True)
                if options.out is not None:
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
