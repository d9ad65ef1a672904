"""How the workers of an engine share GPUs, in the fractions that Ray deals."""

from __future__ import annotations

import math

STEPS = 10_000
"""Of one GPU, in which Ray counts."""


def gpu_share(device: str, gpus: float, workers: int) -> float:
    """Return each worker's share of a GPU, so that all of them find room.

    Parameters
    ----------
    device
        The experiment's.
    gpus
        How many there are.
    workers
        1 or larger.

    Returns
    -------
    float
        At most 1, rounded down to Ray's step. A share lies on one GPU: of two GPUs three workers get a half
        each, because the third of those with two thirds would find room on neither. 0 where no GPU is used,
        and for ``cuda:N``: Ray shows a worker its own GPU alone, as number 0, so these keep all of them.
    """
    if device not in ("auto", "cuda") or gpus < 1:
        return 0.0
    return math.floor(STEPS / math.ceil(workers / int(gpus))) / STEPS
