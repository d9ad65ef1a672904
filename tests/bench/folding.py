"""Where folding pays: one epoch of eight participants with a full batch each, folded and in the loop.

    python tests/bench/folding.py

One core; the best of three. ``kdfed.cohort.levels.HEAVY_STEP`` is read off this table.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kdfed.cohort import levels, train_cohort
from kdfed.config import ModelSettings, OptimiserSettings
from kdfed.data import Examples
from kdfed.models import build_model, state_of
from kdfed.train import PLAIN

PARTICIPANTS = 8
MODELS: list[tuple[str, dict[str, int | tuple[int, ...]], tuple[int, ...]]] = [
    ("mlp", {}, (1, 28, 28)),
    ("mlp", {"hidden": (512, 512)}, (784,)),
    ("cnn", {}, (1, 28, 28)),
    ("cnn", {"width": 32}, (1, 28, 28)),
    ("resnet8", {"width": 8}, (3, 32, 32)),
    ("resnet8", {}, (3, 32, 32)),
    ("resnet18", {"width": 16}, (3, 32, 32)),
]


def best(run: Callable[[], object]) -> float:
    """Return the shortest of three times, in seconds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compare(name: str, options: dict[str, int | tuple[int, ...]], shape: tuple[int, ...], batch: int) -> None:
    """Print one row."""
    settings = OptimiserSettings(epochs=1, batch_size=batch, lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    count = PARTICIPANTS * batch
    examples = Examples(
        torch.randn(count, *shape, generator=generator), torch.randint(10, (count,), generator=generator)
    )
    seconds, work = [], 0.0
    for limit in (float("inf"), 0.0):  # folded whatever it costs, then never
        levels.HEAVY_STEP = limit
        model = build_model(ModelSettings(name=name, options=options), shape, 10, 0)
        start, sizes, seeds = state_of(model), [batch] * PARTICIPANTS, list(range(PARTICIPANTS))
        seconds.append(
            best(
                lambda m=model, s=start, n=sizes, d=seeds: list(
                    train_cohort(m, s, examples, n, settings, PLAIN, d)
                )
            )
        )
        work = levels.plan_for(model, shape, batch).cost.multiply_adds * batch
    folded, loop = seconds
    words = f"{name} {options}" if options else name
    print(
        f"| {words}, {'x'.join(map(str, shape))} | {batch} | {work:.1e} | {folded * 1e3:.0f} ms "
        f"| {loop * 1e3:.0f} ms | {loop / folded:.1f} |"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| model, input | batch | multiply-adds a step | folded | loop | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, options, shape in MODELS:
        for batch in (10, 64) if name in ("mlp", "cnn") else (10, 32):
            compare(name, options, shape, batch)
