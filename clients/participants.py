"""Whose examples these are: what a node must know of its participants, and those of a simulation.

A simulated node owns nobody: the message says which data set is partitioned how
(:class:`kdfed.messages.Simulation`), and the node computes the same partition as every other node. A real
device must never be told by a message what its data is, so that is honoured only inside a simulation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from flwr.app import Context, RecordDict
from torch import nn

from clients.actors import is_simulated
from clients.devices import device_of
from clients.store import Store
from kdfed.arrays import Spec
from kdfed.backbones import Cut, default_cache
from kdfed.data import Examples, PreparedData, prepare
from kdfed.device import resolve_device
from kdfed.errors import ParticipantError, one_line
from kdfed.messages import Asked, DeviceHelloReply, HelloReply, Simulation, versions
from kdfed.models import State
from kdfed.partition import Partition, partition_of
from kdfed.partitions import PARTITIONS
from kdfed.reading import cut_of, inputs_for
from kdfed.seeding import numpy_generator
from kdfed.settings import DataSettings, ModelSettings
from kdfed.setup import Setup


class Participants(Protocol):
    """The participants of a node: all that the ClientApp asks of them."""

    @property
    def setup(self) -> Setup:
        """What they learn, and how their training runs."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    def classes(self) -> int:
        """Number of classes; 1, the number of outputs, in a regression."""

    @property
    def store(self) -> Store:
        """Where they keep what lasts between rounds.

        Raises
        ------
        ParticipantError
            If there is no such place.
        """

    def gather(self, members: Sequence[int], model: ModelSettings) -> tuple[Examples, list[int]]:
        """Return the examples of some participants as a model reads them, and how many each has.

        They are on the device, one participant's after the other's.

        Raises
        ------
        ParticipantError
            If one of them does not exist.
        """

    def inputs(self, stored: np.ndarray, model: ModelSettings) -> torch.Tensor:
        """Return inputs as a model reads them, float32 [N, ...], given as a data set stores them."""

    def noise(self, seed: int, member: int) -> np.random.Generator:
        """Return what draws the noise of a participant's label counts."""

    def teacher(self, model: ModelSettings, template: nn.Module) -> State | None:
        """Return the weights of a teacher that there is already, those of the template; None for none.

        Raises
        ------
        ParticipantError
            If it is another model.
        """

    def check(self, asked: Asked, template: nn.Module) -> None:
        """Refuse what a message sends for the model that it names, where nobody else looked at it.

        Raises
        ------
        ParticipantError
            If it is not that model's.
        """

    def check_statistics(self, spec: Spec) -> None:
        """Refuse statistics for which there is no room.

        Raises
        ------
        ParticipantError
            If there is not.
        """

    def hello(self) -> HelloReply | DeviceHelloReply:
        """Return what is told of them."""


@dataclass(frozen=True)
class SimulatedParticipants:
    """The participants of one simulated experiment and seed: see :class:`Participants`.

    Parameters
    ----------
    data
        The whole data set; held-out splits included.
    partition
        Who holds which examples.
    setup
        What they learn, and how their training runs.
    folder
        Where this run's participants keep what lasts between rounds; None for nowhere.
    """

    data: PreparedData
    partition: Partition
    setup: Setup
    folder: Path | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.data.input_shape

    @property
    def classes(self) -> int:
        """Number of classes, or of outputs."""
        return self.data.classes

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each holds."""
        return self.partition.sizes

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of who holds which examples, and of their labels."""
        found = hashlib.sha256()
        for array in (self.partition.bounds, self.partition.examples, self.data.dataset.labels):
            found.update(array.data)
        return found.hexdigest()

    @property
    def store(self) -> Store:
        """The files of this run's participants."""
        if self.folder is None:
            raise ParticipantError(
                "expected a place where participants can keep a model between rounds, got none; give "
                "ArmConfig.simulation a store (kdfed.messages.Simulation)"
            )
        if not self.folder.is_absolute():
            raise ParticipantError(
                "expected an absolute path as the simulation's store, got "
                f"{one_line(repr(str(self.folder)), 80)}: another would be another folder on every node"
            )
        return Store(self.folder)

    def gather(self, members: Sequence[int], model: ModelSettings) -> tuple[Examples, list[int]]:
        """Return the examples of some participants as a model reads them."""
        unknown = [member for member in members if not 0 <= member < len(self.partition)]
        if unknown:
            raise ParticipantError(
                f"expected a participant from 0 to {len(self.partition) - 1}, got {unknown[0]}"
            )
        parts = [self.partition.indices[member] for member in members]
        indices, cut = np.concatenate(parts), cut_of(model)
        if cut is None:
            examples = self.data.examples(indices)
        else:
            inputs = torch.cat([self._activations.of(member, cut) for member in members])
            examples = Examples(inputs, self.data.labels(indices))
        return examples.to(self.setup.device), [len(part) for part in parts]

    @cached_property
    def _activations(self) -> _Activations:
        return _Activations(self.data, self.partition, self.setup.device)

    def inputs(self, stored: np.ndarray, model: ModelSettings) -> torch.Tensor:
        """Return inputs as a model reads them."""
        return inputs_for(model, stored, self.data.normalisation, self.setup.device)

    def noise(self, seed: int, member: int) -> np.random.Generator:
        """Return seeded noise, so that a simulation repeats."""
        return numpy_generator(seed, "label-counts", 0, member)

    def teacher(self, model: ModelSettings, template: nn.Module) -> State | None:
        """Return None: a simulation names its teachers in the experiment."""
        return None

    def check(self, asked: Asked, template: nn.Module) -> None:
        """Trust the server, which is the same user's."""

    def check_statistics(self, spec: Spec) -> None:
        """Trust the server, which is the same user's."""

    def hello(self) -> HelloReply:
        """Return how many there are, and who holds what."""
        return HelloReply(versions(), self.sizes, self.sha256)


class _Activations:
    """What a backbone makes of participants' images, computed for runs of neighbours at once.

    So a participant with ten images costs no file and no batch of its own. What a run's activations are is
    forgotten with the cache's memory.

    Parameters
    ----------
    data, partition
        Whose images these are.
    device
        Where they are computed.
    """

    def __init__(self, data: PreparedData, partition: Partition, device: torch.device) -> None:
        self._data, self._partition, self._device = data, partition, device
        self._held: WeakValueDictionary[tuple[str, int], torch.Tensor] = WeakValueDictionary()

    def of(self, member: int, cut: Cut) -> torch.Tensor:
        """Return a participant's activations at a cut, float32 [N, *cut.shape], on the CPU."""
        bounds = self._partition.bounds
        run = int(bounds[member]) // _RUN
        first, last = np.searchsorted(bounds[:-1], (run * _RUN, (run + 1) * _RUN))
        key = cut.fingerprint, run
        found = self._held.get(key)
        if found is None:
            indices = self._partition.examples[bounds[first] : bounds[last]]
            found = default_cache().activations(cut, self._data.dataset.inputs[indices], self._device)
            self._held[key] = found
        return found[bounds[member] - bounds[first] : bounds[member + 1] - bounds[first]]


_RUN = 1024
"""Images, about as many as which belong to neighbours whose activations are computed at once."""


def participants_of(content: RecordDict, context: Context) -> Participants:
    """Return the participants that a message is about: a device's own, or those of a simulation.

    Raises
    ------
    ParticipantError
        If the message describes no simulation where this process is part of one, or its node-config does not
        say whose device this is.
    """
    if not is_simulated(context):
        return device_of(content, context.node_config)
    simulation = Simulation.from_record(content)
    if simulation is None:
        raise ParticipantError(
            "expected a message of a simulation, handled inside one: an experiment with data: {source: "
            "devices} needs SuperNodes whose node-config names a participant and its data"
        )
    return simulated(simulation)


@lru_cache(maxsize=16)
def simulated(simulation: Simulation) -> SimulatedParticipants:
    """Return the participants of a simulation; data and partition are made once for all arms of a seed."""
    data, partition = _data_of(simulation.data, simulation.partition, simulation.seed)
    device = resolve_device(simulation.device)
    setup = Setup(data.task, device, simulation.threads, simulation.precision)
    return SimulatedParticipants(data, partition, setup, simulation.store)


@lru_cache(maxsize=4)
def _data_of(data: str, partition: str, seed: int) -> tuple[PreparedData, Partition]:
    prepared = prepare(DataSettings.model_validate_json(data))
    return prepared, partition_of(prepared, PARTITIONS.parse(partition), seed)
