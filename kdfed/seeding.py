"""Every random draw of kdfed comes from (seed, phase, round, participant).

No draw uses a global generator, so results depend neither on the engine nor on the order in which
work is done.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SERVER = -1
"""The participant number that stands for the server in :func:`derive`."""


def derive(seed: int, phase: str, round_number: int = 0, participant: int = SERVER) -> int:
    """Derive one 63-bit seed from the four coordinates of a draw.

    Parameters
    ----------
    seed
        The experiment's seed, 0 or larger.
    phase
        A name such as ``"partition"``, ``"teacher"``, ``"train"``; distinct phases give
        independent streams.
    round_number
        The federated round, 0 before the first.
    participant
        The participant, or :data:`SERVER`.

    Returns
    -------
    int
        A seed in [0, 2**63).
    """
    entropy = [seed, zlib.crc32(phase.encode()), round_number, participant + 1]
    low, high = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


def numpy_generator(
    seed: int, phase: str, round_number: int = 0, participant: int = SERVER
) -> np.random.Generator:
    """Return the NumPy generator of one draw; see :func:`derive`."""
    return np.random.default_rng(derive(seed, phase, round_number, participant))


def torch_generator(
    seed: int, phase: str, round_number: int = 0, participant: int = SERVER
) -> torch.Generator:
    """Return the CPU torch generator of one draw; see :func:`derive`."""
    return torch.Generator().manual_seed(derive(seed, phase, round_number, participant))


@contextmanager
def torch_seed(derived: int) -> Iterator[None]:
    """Seed torch's own generator inside a ``with`` block, and restore it afterwards.

    For code that cannot be handed a generator: layer initialisation and dropout.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived)
        yield
