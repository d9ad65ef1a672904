"""The teacher phase: participants train teachers and upload each once; the server distils them.

============= ========= =======================================================================
message       direction content
============= ========= =======================================================================
train.teacher down      ``arrays``: initial weights (``init: common``); ``config``: settings;
                        ``transfer``: the transfer set's inputs as stored (``upload: logits``)
train.teacher up        ``arrays``: weights, or ``logits`` float16 [N, C]; ``metrics``:
                        ``num-examples``, ``train-loss``, ``local-steps``, label counts when asked
============= ========= =======================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from kdfed import wire
from kdfed.averaging import average_states
from kdfed.consolidate import consolidate
from kdfed.distill import ConsolidationResult
from kdfed.errors import KdfedError
from kdfed.limits import UPDATE_BOUND, LabelCounts, Reach, most_steps, numpy_of
from kdfed.models import State, buffer_keys, load_state, state_of
from kdfed.records import Absent
from kdfed.seeding import derive, sample_participants
from kdfed.settings import ModelSettings, several
from kdfed.train import predict
from kdfed.transfer_sets.transfer_set import examples_of
from strategies.arm_config import ArmConfig
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
    spec: wire.Spec
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
    """

    def __init__(self, config: ArmConfig, grid: ParticipantGrid, common: State) -> None:
        self.config, self.arm, self.grid, self.common = config, config.arm, grid, common
        self._models = several(self.arm.teachers.model) or (self.arm.model,)
        self._modules: dict[int, nn.Module] = {}

    def train(self) -> list[Teacher]:
        """Have the chosen participants train teachers, and receive each once."""
        contents = [self._content(model) for model in self._models]
        settings, counts = self.arm.teachers, None
        if settings.label_counts.send:
            epsilon = settings.label_counts.epsilon
            counts = LabelCounts(self.config.data.classes, 0.0 if epsilon is None else 1 / epsilon)
        self.grid.select(
            sample_participants(
                self.config.seed, "teacher-sample", 0, self.arm.partition.participants, self.count
            ),
            phase="teachers",
            round_number=0,
            spec_of=lambda participant: contents[participant % len(contents)].spec,
            reach_of=lambda participant: contents[participant % len(contents)].reach,
            steps_of=partial(most_steps, settings.epochs, settings.batch_size),
            label_counts=counts,
        )
        deadline = self.arm.server.deadlines.teachers
        messages = [
            Message(contents[p % len(contents)].sent, p, wire.TEACHER, ttl=deadline, group_id="teachers")
            for p in self.grid.get_node_ids()
        ]
        replies = list(self.grid.send_and_receive(messages, timeout=deadline))
        teachers = [_teacher(reply) for reply in replies]
        return [teacher for teacher in teachers if self._is_sound(teacher)]

    def _is_sound(self, teacher: Teacher) -> bool:
        """Tell whether a teacher's logits are finite; weights can be finite and overflow all the same."""
        if self.arm.teachers.upload == "logits" or self.arm.start == "averaged":
            return True
        logits = predict(self._module(teacher), self.config.data.validation.inputs[:_PROBED])
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
        settings = self.arm.teachers
        content, template = RecordDict(), self.config.build(model, "init")
        state = self.common if model == self.arm.model else state_of(template)
        if settings.init == "common":
            content[wire.ARRAYS] = ArrayRecord(dict(state))
        content[wire.CONFIG] = ConfigRecord(
            {
                "seed": self.config.seed,
                "model": model.model_dump_json(),
                "teachers": settings.model_dump_json(exclude={"model", "count"}),
            }
        )
        if settings.upload == "weights":
            limits = replace(self.grid.limits, buffers=buffer_keys(template))
            if settings.init == "own":  # two draws may lie further apart than a training leads
                limits = replace(limits, update_bound=max(limits.update_bound, UPDATE_BOUND))
            return _Content(content, wire.spec_of(state), Reach(numpy_of(state), limits))
        inputs = self.config.data.transfer_inputs
        content[wire.TRANSFER] = ArrayRecord({wire.INPUTS: torch.from_numpy(inputs)})
        return _Content(content, {wire.LOGITS: ((len(inputs), self.config.data.classes), "float16")}, None)

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
        modules: list[nn.Module] = []
        sources: Sequence[nn.Module] | torch.Tensor = modules
        if self.arm.teachers.upload == "logits":
            sources = torch.stack([teacher.arrays[wire.LOGITS] for teacher in teachers])
        else:
            modules += [self._module(teacher) for teacher in teachers]
        refused = settings.transfer.refuses(self.arm.teachers.upload, settings.labels)
        if refused is not None:
            raise KdfedError(f"transfer {settings.transfer.transfer!r}: {refused}")
        transfer = examples_of(
            settings.transfer, data.transfer, modules, derive(self.config.seed, "transfer")
        )
        counts = None
        if self.arm.teachers.label_counts.send:
            counts = np.array([teacher.label_counts for teacher in teachers], dtype=np.float64)
        result = consolidate(
            student,
            sources,
            transfer,
            data.validation,
            settings,
            derive(self.config.seed, "consolidate"),
            setup=self.config.setup,
            label_counts=counts,
            on_epoch=on_epoch,
        )
        return state_of(student), result

    def _module(self, teacher: Teacher) -> nn.Module:
        """Return the teacher as a model; it is built once."""
        if teacher.participant not in self._modules:
            model = self._models[teacher.participant % len(self._models)]
            module = self.config.build(model, "teacher-module")
            load_state(module, teacher.arrays)
            self._modules[teacher.participant] = module.to(self.config.setup.device)
        return self._modules[teacher.participant]


def _teacher(reply: Message) -> Teacher:
    metrics = reply.content.metric_records[wire.METRICS]
    examples, counts = metrics[wire.NUM_EXAMPLES], metrics.get(wire.LABEL_COUNTS)
    assert isinstance(examples, int | float), "checked by the participant grid"
    return Teacher(
        participant=reply.metadata.src_node_id,
        arrays=dict(reply.content.array_records[wire.ARRAYS].to_torch_state_dict()),
        num_examples=int(examples),
        label_counts=[max(float(count), 0.0) for count in counts] if isinstance(counts, list) else None,
    )
