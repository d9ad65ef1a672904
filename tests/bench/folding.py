"""Where folding pays: one epoch of eight participants with a full batch each, folded, looped, and as a sum.

    python tests/bench/folding.py

One core; the best of three. ``kdfed.cohort.levels.HEAVY_STEP`` is read off this table, and with ``--groups``
``kdfed.cohort.one_step.NARROW``: milliseconds of the sum with so many groups of examples side by side.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from kdfed.cohort import levels, one_step, train_cohort
from kdfed.data import Examples
from kdfed.local import PLAIN
from kdfed.models import build_model, state_of
from kdfed.settings import ModelSettings, OptimiserSettings
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION

PARTICIPANTS = 8
GROUPS = "--groups" in sys.argv
MODELS: list[tuple[str, dict[str, int | tuple[int, ...]], tuple[int, ...]]] = [
    ("mlp", {}, (1, 28, 28)),
    ("mlp", {"hidden": (512, 512)}, (784,)),
    ("cnn", {}, (1, 28, 28)),
    ("cnn", {"width": 16}, (3, 32, 32)),
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
    sizes, seeds = [batch] * PARTICIPANTS, list(range(PARTICIPANTS))
    setup = Setup(CLASSIFICATION, torch.device("cpu"), threads=1, precision="float32")

    def seconds(limit: float, *, sums: bool) -> float:
        levels.HEAVY_STEP = limit
        model = build_model(ModelSettings(name=name, options=options), shape, 10, 0)
        start = state_of(model)
        return best(
            lambda: list(
                train_cohort(model, start, examples, sizes, settings, PLAIN, seeds, setup=setup, sums=sums)
            )
        )

    words = f"{name} {options}" if options else name
    row = f"| {words}, {'x'.join(map(str, shape))} | {batch} |"
    if GROUPS:
        for groups in (1, 2, 4, 8):
            one_step._groups = lambda model, groups=groups: groups  # type: ignore[misc]
            row += f" {seconds(0.0, sums=True) * 1e3:.1f} |"
        print(row)
        return
    folded = seconds(float("inf"), sums=False)
    loop, summed = (seconds(0.0, sums=sums) for sums in (False, True))
    model = build_model(ModelSettings(name=name, options=options), shape, 10, 0)
    work = levels.plan_for(model, shape, batch).cost.multiply_adds * batch
    print(
        f"{row} {work:.1e} | {loop * 1e3:.0f} ms | {folded * 1e3:.0f} ms | {summed * 1e3:.0f} ms "
        f"| {loop / folded:.1f} | {loop / summed:.1f} |"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    columns = ["model, input", "batch"]
    columns += (
        ["1", "2", "4", "8"]
        if GROUPS
        else ["multiply-adds a step", "loop", "folded", "sum", "loop / folded", "loop / sum"]
    )
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|")
    for name, options, shape in MODELS:
        for batch in (10, 64) if name in ("mlp", "cnn") else (10, 32):
            compare(name, options, shape, batch)
