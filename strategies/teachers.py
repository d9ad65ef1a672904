"""The teacher phase: participants train teachers and upload each once; the server distils them.

The messages are :class:`kdfed.messages.TrainTeacher` and :class:`kdfed.messages.Update`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import nn

from kdfed.arrays import Spec, spec_of
from kdfed.averaging import average_states
from kdfed.consolidate import consolidate
from kdfed.data import Examples
from kdfed.distill import ConsolidationResult
from kdfed.distill.stacks import TeacherStacks
from kdfed.errors import KdfedError, LogitsError
from kdfed.limits import UPDATE_BOUND, LabelCountLimits, Reach, most_steps, numpy_of
from kdfed.messages import LOGITS, TrainTeacher, Update
from kdfed.models import State, buffer_keys, load_state, state_of
from kdfed.records import Absent
from kdfed.seeding import SERVER, derive, sample_participants
from kdfed.settings import ModelSettings, several
from kdfed.train import predict
from kdfed.transfer_sets.transfer_set import examples_of
from strategies.arm_config import ArmConfig
from strategies.parcels import Exchange
from strategies.participant_grid import ParticipantGrid

_PROBED = 32
"""Validation examples on which a teacher is tried before it joins the ensemble."""

OnEpoch: TypeAlias = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Teacher:
    """What one participant uploaded: ``arrays`` are weights, or ``logits``. Noisy counts are cut off at 0."""

    participant: int
    arrays: State
    num_examples: int
    label_counts: list[float] | None


@dataclass(frozen=True)
class _Content:
    """What teachers of one architecture are sent; how what they send back must look and may differ."""

    sent: RecordDict
    spec: Spec
    reach: Reach | None


def average(teachers: Sequence[Teacher]) -> State:
    """Return the mean of the teachers' weights, weighted by their numbers of examples."""
    weights = [float(teacher.num_examples) for teacher in teachers]
    return average_states([teacher.arrays for teacher in teachers], weights)


class TeacherPhase:
    """One exchange, and what the server makes of it.

    Parameters
    ----------
    config
        The arm.
    grid
        Whose participants become teachers.
    common
        The common initial weights.
    train_config
        What the ServerApp tells its participants beside.
    """

    def __init__(
        self,
        config: ArmConfig,
        grid: ParticipantGrid,
        common: State,
        train_config: ConfigRecord | None = None,
    ) -> None:
        self.config, self.arm, self.grid, self.common = config, config.arm, grid, common
        self._train_config = train_config or ConfigRecord()
        self._models = several(self.arm.teachers.model) or (self.arm.model,)
        self._modules: dict[int, nn.Module] = {}

    def train(self) -> list[Teacher]:
        """Have the chosen participants train teachers, and receive each once."""
        contents = [self._content(model) for model in self._models]
        settings, counts = self.arm.teachers, None
        if settings.label_counts.send:
            epsilon = settings.label_counts.epsilon
            counts = LabelCountLimits(self.config.data.classes, 0.0 if epsilon is None else 1 / epsilon)
        exchange = Exchange(
            phase="teachers",
            round=0,
            spec_of=lambda participant: contents[participant % len(contents)].spec,
            reach_of=lambda participant: contents[participant % len(contents)].reach,
            steps_of=partial(most_steps, settings.epochs, settings.batch_size),
            label_counts=counts,
        )
        participants = self.arm.partition.participants
        chosen = sample_participants(self.config.seed, "teacher-sample", 0, participants, self.count)
        self.grid.begin(exchange, chosen)
        deadline = self.arm.server.deadlines.teachers
        messages = [
            Message(contents[p % len(contents)].sent, p, TrainTeacher.type, ttl=deadline, group_id="teachers")
            for p in self.grid.get_node_ids()
        ]
        replies = list(self.grid.send_and_receive(messages, timeout=deadline))
        teachers = [_teacher(reply) for reply in replies]
        return [teacher for teacher in teachers if self._is_sound(teacher)]

    def _is_sound(self, teacher: Teacher) -> bool:
        """Tell whether a teacher's logits are finite; weights can be finite and overflow all the same."""
        if self.arm.teachers.upload == "logits" or self.arm.start == "averaged":
            return True
        logits = predict(self._module(teacher), self._validation(self._model_of(teacher))[:_PROBED])
        if bool(torch.isfinite(logits).all()):
            return True
        report = self.grid.report
        report.answered.remove(teacher.participant)
        report.absent.append(Absent(teacher.participant, "its teacher's logits are not finite"))
        report.absent.sort(key=lambda absent: absent.participant)
        return False

    @property
    def count(self) -> int:
        """How many participants train a teacher."""
        count = self.arm.teachers.count
        return count if isinstance(count, int) else self.arm.partition.participants

    def _content(self, model: ModelSettings) -> _Content:
        """Return what teachers of one architecture are sent, and what they must send back.

        Those that start from weights of their own are compared with another draw of the same.
        """
        settings, template = self.arm.teachers, self.config.build(model, "init")
        state = self.common if model == self.arm.model else state_of(template)
        inputs = self.config.data.transfer_inputs
        sends_logits = settings.upload == "logits"
        sent = TrainTeacher(
            seed=self.config.seed,
            model=model,
            settings=settings,
            arrays=state if settings.init == "common" else {},
            inputs=torch.from_numpy(inputs) if sends_logits else None,
            more=self._train_config,
        ).to_record()
        if sends_logits:
            return _Content(sent, {LOGITS: ((len(inputs), self.config.data.classes), "float16")}, None)
        limits = replace(self.grid.limits, buffers=buffer_keys(template))
        if settings.init == "own":  # two draws may lie further apart than a training leads
            limits = replace(limits, update_bound=max(limits.update_bound, UPDATE_BOUND))
        return _Content(sent, spec_of(state), Reach(numpy_of(state), limits))

    def consolidate(
        self, teachers: Sequence[Teacher], on_epoch: OnEpoch
    ) -> tuple[State, ConsolidationResult]:
        """Distil the teachers into a student; return its weights, and what it took.

        Parameters
        ----------
        teachers
            At least one.
        on_epoch
            Told (epoch from 1, epochs, validation accuracy or None) after each epoch.
        """
        settings, data = self.arm.consolidation, self.config.data
        student = self.config.build(self.arm.model, "student")
        if settings.init == "common":
            load_state(student, self.common)
        elif settings.init == "averaged":
            load_state(student, average(teachers))
        seed, modules = derive(self.config.seed, "consolidate"), list[nn.Module]()
        sources: Sequence[nn.Module] | torch.Tensor = modules
        validation_logits = None
        if self.arm.teachers.upload == "logits":
            sources = torch.stack([teacher.arrays[LOGITS] for teacher in teachers])
        else:
            modules += [self._module(teacher) for teacher in teachers]
        refused = settings.transfer.refuses(self.arm.teachers.upload, settings.labels)
        if refused is not None:
            raise KdfedError(f"transfer {settings.transfer.transfer!r}: {refused}")
        stored = self._reads_stored and settings.transfer.is_stored
        public = self.config.stored_transfer if stored else data.transfer
        transfer = examples_of(settings.transfer, public, modules, derive(self.config.seed, "transfer"))
        if stored:
            images, settings = self.config.views_of(transfer, settings, seed)
            transfer = self.config.read(images, self.arm.model)
            if modules and any(model.reads != self.arm.model.reads for model in self._models):
                sources, validation_logits = self._logits(teachers, images)
        counts = None
        if self.arm.teachers.label_counts.send:
            counts = np.array([teacher.label_counts for teacher in teachers], dtype=np.float64)
        result = consolidate(
            student,
            sources,
            transfer,
            data.validation,
            settings,
            seed,
            setup=self.config.setup,
            label_counts=counts,
            validation_logits=validation_logits,
            on_epoch=on_epoch,
        )
        return state_of(student), result

    @property
    def _reads_stored(self) -> bool:
        """Whether somebody reads images as they are stored."""
        return any(model.backbone is not None for model in (self.arm.model, *self._models))

    def _logits(self, teachers: Sequence[Teacher], images: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        """Ask each teacher for its logits on what its own model reads of images and of the validation split.

        Returns
        -------
        tuple of torch.Tensor
            float32 [K, N, C] and [K, M, C].
        """
        groups: dict[str, list[int]] = {}
        for index, teacher in enumerate(teachers):
            groups.setdefault(self._model_of(teacher).reads, []).append(index)
        found: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(teachers)
        for indices in groups.values():
            model = self._model_of(teachers[indices[0]])
            stacks = TeacherStacks([self._module(teachers[index]) for index in indices])
            device = self.config.setup.device
            read = self.config.read(images, model).inputs, self._validation(model)
            try:
                both = [stacks.logits(inputs.to(device)) for inputs in read]
            except LogitsError as error:
                broken = [indices[index] for index in error.teachers]
                raise LogitsError(broken, len(teachers)) from error
            for index, *own in zip(indices, *both, strict=True):
                found[index] = own[0], own[1]
        transfer, validation = zip(*found, strict=True)
        return torch.stack(transfer), torch.stack(validation)

    def _validation(self, model: ModelSettings) -> torch.Tensor:
        """Return the validation split's inputs as a model reads them."""
        data = self.config.data
        if model.reads == self.arm.model.reads:
            return data.validation.inputs
        return self.config.inputs(data.validation_inputs, model)

    def _model_of(self, teacher: Teacher) -> ModelSettings:
        """Return a teacher's architecture; one that the server made has the federated model's."""
        if teacher.participant == SERVER:
            return self.arm.model
        return self._models[teacher.participant % len(self._models)]

    def _module(self, teacher: Teacher) -> nn.Module:
        """Return the teacher as a model; it is built once."""
        if teacher.participant not in self._modules:
            module = self.config.build(self._model_of(teacher), "teacher-module")
            load_state(module, teacher.arrays)
            self._modules[teacher.participant] = module.to(self.config.setup.device)
        return self._modules[teacher.participant]


def _teacher(reply: Message) -> Teacher:
    update = Update.from_record(reply.content)
    counts = update.label_counts
    return Teacher(
        participant=reply.metadata.src_node_id,
        arrays=update.arrays,
        num_examples=update.num_examples,
        label_counts=None if counts is None else [max(float(count), 0.0) for count in counts],
    )
