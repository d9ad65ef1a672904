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
from kdfed.closed_form import RunningSum, Sums
from kdfed.consolidate import consolidate
from kdfed.data import Examples
from kdfed.distill import ConsolidationResult
from kdfed.distill.stacks import logits_apart
from kdfed.errors import KdfedError
from kdfed.limits import UPDATE_BOUND, LabelCountLimits, Reach, most_steps, numpy_of
from kdfed.messages import LOGITS, STATISTICS, TrainTeacher, Update
from kdfed.models import State, buffer_keys, load_state, state_of
from kdfed.records import Absent
from kdfed.seeding import SERVER, derive, sample_participants
from kdfed.settings import ModelSettings, several
from kdfed.shelf import label_counts, teachers_of
from kdfed.train import predict
from kdfed.transfer_sets.transfer_set import examples_of
from strategies.arm_config import ArmConfig
from strategies.closed_form import HeadPhase
from strategies.parcels import Exchange
from strategies.participant_grid import ParticipantGrid

_PROBED = 32
"""Validation examples on which a teacher is tried before it joins the ensemble."""

OnEpoch: TypeAlias = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Teacher:
    """What one participant uploaded: ``arrays`` are weights, or ``logits``. Noisy counts are cut off at 0.

    Of one that comes from a file nobody says on how many examples it was trained: all count alike.
    """

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
    statistics
        Asks for sums over the features of the common initial weights, which come with the teachers. Default:
        nobody asks.
    """

    def __init__(
        self,
        config: ArmConfig,
        grid: ParticipantGrid,
        common: State,
        train_config: ConfigRecord | None = None,
        statistics: HeadPhase | None = None,
    ) -> None:
        self.config, self.arm, self.grid, self.common = config, config.arm, grid, common
        self._train_config = train_config or ConfigRecord()
        self._models = several(self.arm.teachers.model) or (self.arm.model,)
        self._modules: dict[int, nn.Module] = {}
        self._all_alike = False
        self._statistics = statistics
        self.sums: Sums | None = None

    def read(self) -> list[Teacher]:
        """Read teachers that exist already; nothing is trained or sent.

        Raises
        ------
        ConfigError
            With everything that is wrong with their files.
        KdfedError
            If nobody said what they must fit.
        """
        if self.config.card is None:
            raise KdfedError(
                "expected ArmConfig.card beside teachers.from: what the files must fit, got none"
            )
        found = teachers_of(self.arm, self.config.card)
        self._models = tuple(one.settings for one in found.values())
        self._modules = {number: one.model.to(self.config.setup.device) for number, one in found.items()}
        self._all_alike = any(one.label_counts is None for one in found.values())
        counts = label_counts(list(found.values())).tolist() if self.arm.teachers.label_counts.send else None
        return [
            Teacher(number, state_of(one.model), 1, None if counts is None else counts[number])
            for number, one in found.items()
        ]

    def solved(self, sums: Sums) -> Teacher:
        """Return the common initial weights, with their head in closed form, as one more teacher.

        Parameters
        ----------
        sums
            Of everybody's examples, which the head is of. Beside teachers from files it counts as one of
            them; where those do not say their examples of each class, it does not either.
        """
        examples = sums.examples if self.arm.teachers.from_ is None else 1
        counts = sums.present_C.double() if self._all_alike else sums.counts_C
        return Teacher(SERVER, self.common, examples, counts.tolist())

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
            Message(contents[p % len(contents)].sent, p, TrainTeacher.type, ttl=deadline)
            for p in self.grid.get_node_ids()
        ]
        replies = list(self.grid.send_and_receive(messages, timeout=deadline))
        found = [(reply.metadata.src_node_id, Update.from_record(reply.content)) for reply in replies]
        if self._statistics is not None:
            found = self._with_statistics(found, self._statistics)
        teachers = [_teacher(participant, update) for participant, update in found]
        return [teacher for teacher in teachers if self._is_sound(teacher)]

    def _with_statistics(
        self, updates: Sequence[tuple[int, Update]], statistics: HeadPhase
    ) -> list[tuple[int, Update]]:
        """Add the statistics up, and return the teachers of those that sent some that can be sums."""
        total, most = RunningSum(max(1, len(updates))), statistics.most(self.common)
        taken = []
        for place, (participant, update) in enumerate(updates):
            sums = {
                key.removeprefix(STATISTICS): value.numpy()
                for key, value in update.arrays.items()
                if key.startswith(STATISTICS)
            }
            problem = statistics.add(total, place, most, sums, update.num_examples)
            if problem is None:
                kept = {k: value for k, value in update.arrays.items() if not k.startswith(STATISTICS)}
                taken.append((participant, replace(update, arrays=kept)))
            else:
                self._leave_out(participant, f"its statistics: {problem}")
        self.sums = total.result()
        return taken

    def _leave_out(self, participant: int, reason: str) -> None:
        report = self.grid.report
        report.answered.remove(participant)
        report.absent.append(Absent(participant, reason))
        report.absent.sort(key=lambda absent: absent.participant)

    def _is_sound(self, teacher: Teacher) -> bool:
        """Tell whether a teacher's logits are finite; weights can be finite and overflow all the same."""
        if self.arm.teachers.upload == "logits" or self.arm.start == "averaged":
            return True
        logits = predict(self._module(teacher), self._validation(self._model_of(teacher))[:_PROBED])
        if bool(torch.isfinite(logits).all()):
            return True
        self._leave_out(teacher.participant, "its teacher's logits are not finite")
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
        head, projection_seed, beside = None, 0, dict[str, tuple[tuple[int, ...], str]]()
        if self._statistics is not None:
            head, projection_seed = self._statistics.asking
            beside = {STATISTICS + key: value for key, value in self._statistics.spec.items()}
        sent = TrainTeacher(
            seed=self.config.seed,
            model=model,
            settings=settings,
            arrays=state if settings.init == "common" else {},
            inputs=torch.from_numpy(inputs) if sends_logits else None,
            more=self._train_config,
            head=head,
            projection_seed=projection_seed,
        ).to_record()
        if sends_logits:
            spec: Spec = {LOGITS: ((len(inputs), self.config.data.classes), "float16")}
            return _Content(sent, {**spec, **beside}, None)
        limits = replace(self.grid.limits, buffers=buffer_keys(template))
        if settings.init == "own":  # two draws may lie further apart than a training leads
            limits = replace(limits, update_bound=max(limits.update_bound, UPDATE_BOUND))
        return _Content(sent, {**spec_of(state), **beside}, Reach(numpy_of(state), limits))

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
            fresh=state_of(self.config.build(self.arm.model, "perturb")) if settings.perturb else None,
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

        def inputs_of(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            model = self._model_of(teachers[index])
            return self.config.read(images, model).inputs, self._validation(model)

        reads = [self._model_of(teacher).reads for teacher in teachers]
        transfer, validation = logits_apart(list(map(self._module, teachers)), reads, inputs_of)
        return transfer, validation

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


def _teacher(participant: int, update: Update) -> Teacher:
    counts = update.label_counts
    return Teacher(
        participant=participant,
        arrays=update.arrays,
        num_examples=update.num_examples,
        label_counts=None if counts is None else [max(float(count), 0.0) for count in counts],
    )
