"""How long the teachers' logits on a transfer set take: kdfed against the plain loop over teachers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from work import SEED, Work

from kdfed.distill.stacks import teacher_logits
from kdfed.models import build_model
from kdfed.seeding import derive

IMAGES, REPEATS = 500, 3


def measure(teachers: Sequence[int]) -> list[dict[str, Any]]:
    """Time ensembles of these sizes on real images; loop and kdfed take turns, the first turn warms up.

    Returns
    -------
    list of dict
        ``*_seconds_per_10k``: median seconds per 10,000 teacher-images, one core.

    Raises
    ------
    AssertionError
        If the logits differ by more than 1e-4.
    """
    work = Work("cnn", 10)
    data = work.data
    inputs = data.examples(data.splits.train[:: len(data.splits.train) // IMAGES][:IMAGES]).inputs
    settings = work.experiment.model
    rows = []
    for count in teachers:
        models = [
            build_model(settings, data.input_shape, data.classes, derive(SEED, "teacher", k))
            for k in range(count)
        ]
        seconds: dict[str, list[float]] = {"kdfed": [], "loop": []}
        for _ in range(1 + REPEATS):
            fast = _timed(lambda: teacher_logits(models, inputs), seconds["kdfed"])  # noqa: B023
            slow = _timed(lambda: loop(models, inputs), seconds["loop"])  # noqa: B023
        assert torch.allclose(fast, slow, atol=1e-4), "not the same logits"
        row = {
            "benchmark": "consolidation",
            "model": "cnn",
            "teachers": count,
            "images": IMAGES,
            "workers": 1,
        }
        scale = 10_000 / (count * IMAGES)
        medians = {name: statistics.median(values[1:]) * scale for name, values in seconds.items()}
        rows.append({**row, **{f"{name}_seconds_per_10k": value for name, value in medians.items()}})
    return rows


@torch.no_grad()
def loop(models: Sequence[torch.nn.Module], inputs: torch.Tensor) -> torch.Tensor:
    """Return logits [K, N, C], one teacher after the other."""
    logits = []
    for model in models:
        model.eval()
        logits.append(torch.cat([model(batch) for batch in inputs.split(256)]))
    return torch.stack(logits)


def _timed(action: Callable[[], torch.Tensor], seconds: list[float]) -> torch.Tensor:
    started = time.perf_counter()
    result = action()
    seconds.append(time.perf_counter() - started)
    return result
