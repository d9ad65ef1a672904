"""Whose examples these are: a partition of a simulation.

A simulated node owns nobody: the message says which data set is partitioned how (the ``simulation``
record), and the node computes the same partition as every other node. A real device must never be told
by a message what its data is, so the record is honoured only inside a simulation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context

from clients.actors import is_simulated
from clients.store import Store
from kdfed.data import Examples, PreparedData, prepare
from kdfed.device import resolve_device
from kdfed.errors import ParticipantError, one_line
from kdfed.partition import Partition, partition_of
from kdfed.partitions import PARTITIONS
from kdfed.settings import DataSettings
from kdfed.setup import Precision, Setup


@dataclass(frozen=True)
class SimulatedParticipants:
    """The participants of one simulated experiment and seed.

    Parameters
    ----------
    data
        The whole data set; held-out splits included.
    partition
        Who holds which examples.
    setup
        What they learn, and how their training runs.
    """

    data: PreparedData
    partition: Partition
    setup: Setup

    def gather(self, members: Sequence[int]) -> tuple[Examples, list[int]]:
        """Return the examples of some participants on the device, one after the other, and how many each has.

        Raises
        ------
        ParticipantError
            If one of them does not exist.
        """
        unknown = [member for member in members if not 0 <= member < len(self.partition)]
        if unknown:
            raise ParticipantError(
                f"expected a participant from 0 to {len(self.partition) - 1}, got {unknown[0]}"
            )
        parts = [self.partition.indices[member] for member in members]
        examples = self.data.examples(np.concatenate(parts))
        return examples.to(self.setup.device), [len(part) for part in parts]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of who holds which examples, and of their labels: equal where the data are."""
        digest = hashlib.sha256()
        for array in (self.partition.bounds, self.partition.examples, self.data.dataset.labels):
            digest.update(array.data)
        return digest.hexdigest()


def participants_of(simulation: Mapping[str, Any] | None, context: Context) -> SimulatedParticipants:
    """Return the participants that a message is about.

    Raises
    ------
    ParticipantError
        If the message describes no simulation, or this process is not part of one.
    """
    if simulation is None or not is_simulated(context):
        raise ParticipantError(
            "expected a message of a simulation, handled inside one; a device's own data is named in its "
            "node-config, which this release does not read yet"
        )
    return _simulated(
        str(simulation["data"]),
        str(simulation["partition"]),
        int(simulation["seed"]),
        str(simulation["device"]),
        int(simulation["threads"]),
        "bfloat16" if simulation["precision"] == "bfloat16" else "float32",
    )


def store_of(simulation: Mapping[str, Any] | None, context: Context) -> Store:
    """Return where the participants of a message's simulation keep what lasts between rounds.

    Raises
    ------
    ParticipantError
        If the message names no place, or this process is not part of a simulation.
    """
    if simulation is None or "store" not in simulation or not is_simulated(context):
        raise ParticipantError(
            "expected a place where participants can keep a model between rounds, got none; give "
            "ArmConfig.simulation a store (kdfed.wire.simulation_record)"
        )
    path = Path(str(simulation["store"]))
    if not path.is_absolute():
        raise ParticipantError(
            f"expected an absolute path as the simulation's store, got {one_line(repr(str(path)), 80)}: "
            "another would be another folder on every node"
        )
    return Store(path)


@lru_cache(maxsize=4)
def _simulated(
    data: str, partition: str, seed: int, device: str, threads: int, precision: Precision
) -> SimulatedParticipants:
    prepared = prepare(DataSettings.model_validate_json(data))
    made = partition_of(prepared, PARTITIONS.parse(partition), seed)
    setup = Setup(prepared.task, resolve_device(device), threads, precision)
    return SimulatedParticipants(prepared, made, setup)
