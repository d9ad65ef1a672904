"""Every random draw of kdfed comes from (seed, phase, round, participant).

No draw uses a global generator, so results depend neither on the engine nor on the order in which
work is done.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
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
    return derive_many(seed, phase, round_number, [participant])[0]


def derive_many(seed: int, phase: str, round_number: int, participants: Sequence[int]) -> list[int]:
    """Derive the seeds of many participants at once: :func:`derive` of each, in their order."""
    entropy = [seed, zlib.crc32(phase.encode()), round_number, 0]
    low, high = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    server = int(high) << 32 | int(low)
    numbers = (np.asarray(participants, dtype=np.int64) + 1).astype(np.uint64)  # 0 is the server
    mixed = np.where(numbers == 0, np.uint64(server), _mix(np.uint64(server) + numbers * _GOLDEN))
    seeds: list[int] = (mixed & np.uint64(2**63 - 1)).tolist()
    return seeds


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return the SplitMix64 hash (Steele et al. 2014) of every uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = values ^ (values >> np.uint64(31))
    return hashed


def shuffled(seeds: Sequence[int], epoch: int, counts: Sequence[int]) -> np.ndarray:
    """Draw an order of examples for each of many participants at once.

    Example i of a participant is hashed with its seed and the epoch, and the hashes are sorted: one
    participant's order does not depend on who else is drawn.

    Parameters
    ----------
    seeds
        Derived seeds, one for each of B participants.
    epoch
        From 0; each has an order of its own.
    counts
        Numbers of examples, N_b.

    Returns
    -------
    numpy.ndarray
        int64 [B, max N_b]; the first N_b entries of row b are a permutation of 0 to N_b - 1, the rest of the
        row means nothing.
    """
    examples = np.arange(max(counts), dtype=np.uint64)
    with np.errstate(over="ignore"):
        base = _mix(np.asarray(seeds, dtype=np.uint64) + np.uint64(epoch + 1) * _GOLDEN)
        keys = _mix(base[:, None] + (examples + np.uint64(1)) * _GOLDEN)
    keys[examples >= np.asarray(counts, dtype=np.uint64)[:, None]] = np.iinfo(np.uint64).max
    return np.argsort(keys, axis=1, kind="stable")


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
def python_seed(derived: int) -> Iterator[None]:
    """Seed Python's own generator inside a ``with`` block, and restore it afterwards.

    For code that cannot be handed a generator: Flower's sampling of nodes.
    """
    state = random.getstate()
    random.seed(derived)
    try:
        yield
    finally:
        random.setstate(state)


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
