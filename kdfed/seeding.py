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


def sample_participants(seed: int, phase: str, round_number: int, everyone: int, count: int) -> list[int]:
    """Draw ``count`` of the participants 0 to ``everyone - 1`` without replacement; return them in order."""
    drawn = numpy_generator(seed, phase, round_number).choice(everyone, count, replace=False)
    return sorted(int(participant) for participant in drawn)


@contextmanager
def torch_seed(derived: int) -> Iterator[None]:
    """Seed torch's own generators inside a ``with`` block, and restore them afterwards.

    For code that cannot be handed a generator: layer initialisation and dropout.

    Notes
    -----
    Not ``torch.manual_seed``: where a CUDA build runs without a GPU it formats a stack trace at every call,
    and keeps it, for three devices that are not there.
    """
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cpu_state, cuda_states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else []
    torch.default_generator.manual_seed(derived)
    if cuda:
        torch.cuda.manual_seed_all(derived)
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)
