"""A real device: one participant with examples of its own, which its node-config names.

The second implementation of :class:`clients.participants.Participants`. What the device must make of its
examples (:class:`kdfed.device_data.DeviceData`) comes with every message, because every message may start a
client process anew; what they are, where it trains and where it keeps anything is the node-config's alone.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from clients.bounds import check_arrays, check_models, check_statistics
from clients.node_config import NodeConfig, node_config_of
from clients.store import Store
from kdfed.arrays import Spec, problem_with_arrays, spec_of
from kdfed.data import Examples, Normalisation, PreparedData
from kdfed.data.checks import machine_memory
from kdfed.data.sources import SOURCES, kind_of
from kdfed.device import resolve_device
from kdfed.device_data import SOURCES as OF_DEVICES
from kdfed.device_data import DeviceData, own_data
from kdfed.errors import DataError, KdfedError, ParticipantError, one_line, shown
from kdfed.messages import CONFIG, Asked, DeviceHelloReply, device_data_of, record_of, versions_of_device
from kdfed.models import State, state_of
from kdfed.named import is_named
from kdfed.paths import user_path
from kdfed.reading import examples_for, inputs_for
from kdfed.settings import ModelSettings, TeacherFile
from kdfed.setup import Setup
from kdfed.task import TASKS

if TYPE_CHECKING:
    from kdfed.saved import Card


@dataclass(frozen=True)
class DeviceParticipant:
    """The one participant of a device: see :class:`clients.participants.Participants`.

    Parameters
    ----------
    config
        The device's node-config.
    wanted
        What it must make of its examples.
    """

    config: NodeConfig
    wanted: DeviceData

    @cached_property
    def data(self) -> PreparedData:
        """Its own examples.

        Raises
        ------
        ParticipantError
            If they cannot be read, or are not what the experiment asks for.
        """
        try:
            return own_data(self.wanted, self.config.data)
        except DataError as error:
            raise self._error(f"its data: {error}") from error

    @cached_property
    def setup(self) -> Setup:
        """What it learns, and where."""
        try:
            device = resolve_device(self.config.device)
        except DataError as error:
            raise self._error(str(error)) from error
        return Setup(TASKS[self.wanted.task], device, self.config.threads, self.wanted.precision)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.wanted.shape

    @property
    def classes(self) -> int:
        """Number of classes, or of outputs."""
        return len(self.wanted.classes) or 1

    @property
    def store(self) -> Store:
        """Its own files of this run; those of earlier runs of the same arm and seed are removed."""
        if self.config.store is None:
            raise self._error(
                "expected 'store', a folder for what it keeps between rounds, in this device's node-config, "
                "got none: this experiment keeps a model or a control variate there"
            )
        experiment, arm, run = self.wanted.run.split("/")
        try:
            folder = user_path(self.config.store).absolute() / self.config.participant / experiment / arm
            for other in folder.iterdir() if folder.is_dir() else ():
                if other.name != run:
                    shutil.rmtree(other, ignore_errors=True)
        except (DataError, OSError) as error:
            raise self._error(f"store {shown(self.config.store)}: {one_line(error)}") from error
        return Store(folder / run)

    def gather(self, members: Sequence[int], model: ModelSettings) -> tuple[Examples, list[int]]:
        """Return its examples as a model reads them."""
        if len(members) != 1:
            raise self._error(
                f"expected a message to one participant, which this device is, got one to {len(members)}"
            )
        examples = examples_for(model, self.data, self.data.splits.train, self.setup.device)
        return examples.to(self.setup.device), [len(examples)]

    def inputs(self, stored: np.ndarray, model: ModelSettings) -> torch.Tensor:
        """Return inputs as a model reads them."""
        if stored.shape[1:] != self.wanted.shape:
            raise self._error(
                f"expected inputs [N, {', '.join(map(str, self.wanted.shape))}], got {list(stored.shape)}"
            )
        return inputs_for(model, stored, Normalisation(self.wanted.mean, self.wanted.std), self.setup.device)

    def check(self, asked: Asked, template: nn.Module) -> None:
        """Refuse weights that are not those of the model that a message names."""
        check_arrays(asked, template)

    def check_statistics(self, spec: Spec) -> None:
        """Refuse statistics of more numbers than a device has room for."""
        check_statistics(spec)

    def noise(self, seed: int, member: int) -> np.random.Generator:
        """Return what draws noise that nobody can repeat: the server knows the seed."""
        return np.random.default_rng(int.from_bytes(os.urandom(32)))

    def teacher(self, model: ModelSettings, template: nn.Module) -> State | None:
        """Return the weights of the teacher that the node-config names; None where it names none.

        Raises
        ------
        ParticipantError
            If it is of another architecture, other classes or another normalisation, or cannot be read.
        """
        if self.config.teacher is None:
            return None
        from kdfed.shelf import read_teacher  # imports what only this needs

        where = f"teacher {shown(self.config.teacher)}"
        try:
            read = read_teacher(
                TeacherFile(file=self.config.teacher, model=self._model_of(model)), self._card(model)
            )
        except KdfedError as error:
            raise self._error(f"{where}: {error}") from error
        if not read.is_plain:
            raise self._error(
                f"{where}: expected one that reads the experiment's inputs and has its classes in their "
                "order, got one that would have to be adapted; remove 'teacher', so that one is trained"
            )
        state = {key: value.cpu() for key, value in state_of(read.model).items()}
        problem = problem_with_arrays(state, spec_of(template.state_dict()))
        if problem is not None:
            raise self._error(
                f"{where} does not fit the model that is asked for: {problem}; remove 'teacher', so that one "
                "is trained"
            )
        return state

    def _model_of(self, model: ModelSettings) -> ModelSettings | None:
        """Return what is said of the teacher's model beside its file: nothing, where that says it itself."""
        from kdfed.saved import has_card

        path = user_path(str(self.config.teacher))
        return None if path.suffix == ".safetensors" and path.is_file() and has_card(path) else model

    def _card(self, model: ModelSettings) -> Card:
        """Describe the model that a teacher must be like."""
        from kdfed.saved import Card

        wanted = self.wanted
        return Card(
            kdfed="",
            task=wanted.task,
            model=model,
            input_shape=wanted.shape,
            resized=wanted.resized,
            classes=wanted.classes,
            mean=wanted.mean,
            std=wanted.std,
            label_mean=wanted.label_mean,
            label_std=wanted.label_std,
        )

    def hello(self) -> DeviceHelloReply:
        """Return what the device tells of itself: it has read its examples by then."""
        device = str(self.setup.device)
        if self.setup.device.type == "cuda":
            device = f"{device} {torch.cuda.get_device_name(self.setup.device)}"
        return DeviceHelloReply(
            participant=self.config.participant,
            examples=len(self.data.splits.train),
            shape=self.data.input_shape,
            versions=versions_of_device(),
            device=f"{device}, {platform.machine()}",
            memory=machine_memory() or 0,
        )

    def _error(self, text: str) -> ParticipantError:
        return ParticipantError(f"participant {self.config.participant!r}: {text}")


def device_of(content: RecordDict, node_config: Mapping[str, Any]) -> DeviceParticipant:
    """Return the participant of this device.

    Raises
    ------
    ParticipantError
        If keys of the node-config are missing or wrong (all are told), or the message does not say what must
        be made of a device's examples.
    """
    config = node_config_of(node_config)
    _check_source(config)
    record = record_of(content, CONFIG, ConfigRecord)
    wanted = device_data_of(record)
    if wanted is None:
        raise ParticipantError(
            f"participant {config.participant!r}: expected a message to a device, which says what must be "
            "made of its examples, got one to a simulation: run an experiment with data: {source: devices}"
        )
    participant = DeviceParticipant(config, wanted)
    check_models(content, record, participant.input_shape, participant.classes)
    return participant


def _check_source(config: NodeConfig) -> None:
    """Refuse data that are no device's own."""
    kind = kind_of(config.data)
    argument = config.data.removeprefix(kind)
    if (kind in OF_DEVICES and argument) or (kind not in SOURCES and is_named(config.data)):
        return
    raise ParticipantError(
        f"participant {config.participant!r}: node-config 'data': expected {', '.join(OF_DEVICES)} and a "
        f"path, or a package.module:name that is installed here, got {shown(config.data)}"
    )
