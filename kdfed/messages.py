r"""Every message: its type, its records, and how it is read and written.

What one participant and the server exchange (the logical message, which the ledger counts):

================ ========= ======================== =================================================
message          direction record                   content
================ ========= ======================== =================================================
``query.hello``  down      :class:`Hello`           ``config``: ``versions`` of the server
\\               up        :class:`HelloReply`      ``config``: ``versions`` of the node,
\\                                                  ``partition-sha256``; ``metrics``:
\\                                                  ``participants``, ``num-examples``, ``held`` [P]
\\               up        of a device              ``config``: ``participant``, ``shape``, ``versions``,
\\                                                  ``device``; ``metrics``: ``num-examples``,
\\                                                  ``memory`` (:class:`DeviceHelloReply`)
``train.teacher`` down     :class:`TrainTeacher`    ``arrays``: initial weights (``init: common``);
\\                                                  ``config``; ``transfer``: ``inputs``
\\                                                  [N, ...] as stored (``upload: logits``)
\\               up        :class:`Update`          ``arrays``: weights, or ``logits`` float16
\\                                                  [N, C], and, if asked for, sums over features as
\\                                                  ``statistics.NAME``; ``metrics``
``train``        down      :class:`Train`           ``arrays``: global weights; ``config``; ``fixed``:
\\                                                  weights that are not trained (``local.trainable``);
\\                                                  ``control``: the server's control variate (SCAFFOLD)
\\               up        :class:`Update`          ``arrays``: weights; ``metrics``
``query.logits`` down      :class:`QueryLogits`     ``transfer``: ``inputs`` [M, ...] as stored, in a
\\                                                  participant's first message; ``consensus``
\\                                                  float16 [N, C] of an earlier round; ``arrays``:
\\                                                  initial weights, in the first message; ``config``
\\               up        :class:`Update`          ``arrays``: ``logits`` float16 [N, C]; ``metrics``
``query.statistics`` down  :class:`QueryStatistics` ``arrays``: global weights below the head; ``config``
\\               up        :class:`Update`          ``arrays``: sums over features
                                                    (:mod:`kdfed.closed_form.sums`); ``metrics``
``evaluate``     down      :class:`Evaluate`        ``arrays``: global weights; ``config``
\\               up        :class:`Evaluation`      ``metrics``
================ ========= ======================== =================================================

The metrics are those of :mod:`kdfed.metrics`. Of a model with a backbone ``config`` holds
``backbone-sha256`` too, and weights are those of the part that is trained. They have the keys, shapes and
dtypes of the model's ``state_dict``; settings travel as JSON in ``config`` and are read once, into the
classes of an experiment.

To a device every ``config`` holds ``device-data`` too, what it must make of its examples
(:class:`kdfed.device_data.DeviceData`): each message may start a client anew, which knows nothing else.

Around the logical message stand records that no ledger counts:

``cohorts``
    Down (:class:`Cohorts`): which participants a network message is for, in cohorts, and which of its
    contents is for whom. In a simulation one network message carries many participants; each distinct content
    is in it once. Up (:class:`Answers`): who answered, and in which result. A device is one participant: its
    message has no such record, and holds what the strategy put in alone. Its number stands in the message's
    ``group_id`` (:func:`group_of`), where the strategy left that empty. Its reply is an ordinary one.
``simulation``
    Down (:class:`Simulation`): whose data a node of a simulation uses. A device ignores it.
``warnings``
    Up: ``texts`` of warnings that came up on a simulated node.

This module and :mod:`kdfed.private` are all of kdfed that imports Flower.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import ValidationError

from kdfed.closed_form import HEADS, ClosedFormHead
from kdfed.config import Arm
from kdfed.device_data import DeviceData
from kdfed.errors import MessageError, one_line
from kdfed.family import Family
from kdfed.limits import Limits
from kdfed.local import LOCAL_MODES, LocalMode
from kdfed.metrics import (
    EVAL_ACCURACY,
    EVAL_LOSS,
    LABEL_COUNTS,
    LOCAL_STEPS,
    NUM_EXAMPLES,
    TRAIN_LOSS,
    Metrics,
)
from kdfed.models import State
from kdfed.npy import read_array
from kdfed.outside import code_of
from kdfed.reading import cut_of
from kdfed.records.parsing import problems_of
from kdfed.settings import NAME_OF_PARTICIPANT, ModelSettings, OptimiserSettings, TeacherSettings
from kdfed.setup import Precision
from kdfed.thing import Thing

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
TRANSFER = "transfer"
FIXED = "fixed"
CONTROL = "control"
COHORTS = "cohorts"
SIMULATION = "simulation"
WARNINGS = "warnings"
BACKBONE = "backbone-sha256"
DEVICE_DATA = "device-data"

INPUTS = "inputs"
LOGITS = "logits"
CONSENSUS = "consensus"
_TOGETHER = "statistics"
STATISTICS = f"{_TOGETHER}."
"""Before the names of sums over features, where they travel beside a teacher."""

Config: TypeAlias = dict[str, Any]
R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)
V = TypeVar("V", str, int)


def versions() -> dict[str, str]:
    """Return the versions that must agree between server and participants."""
    return {name: version(name) for name in ("kdfed", "torch", "numpy")}


# ----------------------------------------------------------------------------- hello


@dataclass(frozen=True)
class Hello:
    """The server asks a node who is there."""

    type: ClassVar[str] = "query.hello"

    versions: Mapping[str, str]
    device_data: DeviceData | None = None
    """What a device must make of its examples; None in a simulation."""

    def to_record(self) -> RecordDict:
        """Return the message's content."""
        wanted = self.device_data
        told = {} if wanted is None else {DEVICE_DATA: wanted.model_dump_json()}
        config: Config = {"versions": json.dumps(dict(self.versions)), **told}
        return RecordDict({CONFIG: ConfigRecord(config)})


@dataclass(frozen=True)
class HelloReply:
    """What a node of a simulation knows.

    Parameters
    ----------
    versions
        What runs there.
    examples
        How many examples each participant holds, int64 [P].
    partition_sha256
        A hash of who holds which examples.
    """

    versions: Mapping[str, str]
    examples: np.ndarray
    partition_sha256: str

    def to_record(self) -> RecordDict:
        """Return the reply's content."""
        metrics: dict[str, Any] = {
            "participants": len(self.examples),
            NUM_EXAMPLES: int(self.examples.sum()),
            "held": self.examples.tolist(),
        }
        config: Config = {
            "versions": json.dumps(dict(self.versions)),
            "partition-sha256": self.partition_sha256,
        }
        return RecordDict({METRICS: MetricRecord(metrics), CONFIG: ConfigRecord(config)})

    @classmethod
    def from_record(cls, content: RecordDict) -> HelloReply:
        """Read a reply.

        Raises
        ------
        MessageError
            If it lacks something, or its numbers do not agree.
        """
        config, metrics = record_of(content, CONFIG, ConfigRecord), record_of(content, METRICS, MetricRecord)
        count, examples, held = (metrics.get(key) for key in ("participants", NUM_EXAMPLES, "held"))
        sha256, text = config.get("partition-sha256"), config.get("versions")
        if not (
            type(count) is int
            and type(examples) is int
            and isinstance(sha256, str)
            and isinstance(text, str)
            and isinstance(held, list)
            and all(type(each) is int for each in held)
        ):
            raise MessageError(
                "expected every node to tell the number of participants, of their examples, those of each, "
                f"a hash and its versions, got {count!r:.40}, {examples!r:.40}, {held!r:.40}, {sha256!r:.80} "
                f"and {text!r:.80}"
            )
        if len(held) != count or not held:
            raise MessageError(
                f"expected the examples of each participant, got those of {len(held)} for {count} of them"
            )
        if min(held) < 0 or sum(held) != examples or examples >= 2**63:
            raise MessageError(
                f"expected at least 0 examples of each participant, {examples} in all, got {min(held)} to "
                f"{max(held)}, {sum(held)} in all"
            )
        try:
            versions = json.loads(text)
        except (ValueError, RecursionError):
            versions = {"versions": text}
        return cls(versions, np.array(held, dtype=np.int64), one_line(sha256))


@dataclass(frozen=True)
class DeviceHelloReply:
    """What a device tells of itself.

    Parameters
    ----------
    participant
        Its name.
    examples
        How many it trains on.
    shape
        Of one input.
    versions
        What runs there: kdfed, flwr, torch, numpy and python.
    device
        Where it trains.
    memory
        Of its machine, in bytes; 0 where nobody knows.
    """

    participant: str
    examples: int
    shape: tuple[int, ...]
    versions: Mapping[str, str]
    device: str
    memory: int

    def to_record(self) -> RecordDict:
        """Return the reply's content."""
        config: Config = {
            "participant": self.participant,
            "shape": list(self.shape),
            "versions": json.dumps(dict(self.versions)),
            "device": self.device,
        }
        metrics = {NUM_EXAMPLES: self.examples, "memory": self.memory}
        return RecordDict({METRICS: MetricRecord(dict(metrics)), CONFIG: ConfigRecord(config)})

    @classmethod
    def from_record(cls, content: RecordDict) -> DeviceHelloReply:
        """Read a reply; nothing in it is longer than a line.

        Raises
        ------
        MessageError
            If it lacks something, or has something of another kind.
        """
        config, metrics = record_of(content, CONFIG, ConfigRecord), record_of(content, METRICS, MetricRecord)
        name = _value(config, "participant", str)
        if NAME_OF_PARTICIPANT.fullmatch(name) is None:
            raise MessageError(f"expected the name of a participant, got {one_line(repr(name), 80)}")
        examples, memory = (_value(metrics, key, int) for key in (NUM_EXAMPLES, "memory"))
        shape: Any = config.get("shape")
        if not isinstance(shape, list) or len(shape) > 3 or not all(type(size) is int for size in shape):
            raise MessageError(f"expected the shape of one input, got {shape!r:.80}")
        try:
            told = json.loads(_value(config, "versions", str))
            versions = {str(key)[:40]: one_line(str(value), 40) for key, value in list(told.items())[:20]}
        except (ValueError, AttributeError, RecursionError) as error:
            raise MessageError(f"expected versions by name, got {one_line(error, 80)}") from error
        return cls(
            name, examples, tuple(shape), versions, one_line(_value(config, "device", str), 100), memory
        )


def versions_of_device() -> dict[str, str]:
    """Return the versions that a device tells."""
    return {**versions(), "flwr": version("flwr"), "python": platform.python_version()}


def told_to_device(content: RecordDict, wanted: DeviceData) -> RecordDict:
    """Return a message's content with what a device must know in its ``config``.

    Parameters
    ----------
    content
        What a strategy sends; it is not changed.
    wanted
        What the device must make of its examples.
    """
    config = {**record_of(content, CONFIG, ConfigRecord), DEVICE_DATA: wanted.model_dump_json()}
    return RecordDict({**content, CONFIG: ConfigRecord(config)})


def device_data_of(config: Mapping[str, Any]) -> DeviceData | None:
    """Return what a message says that a device must make of its examples; None where it says nothing.

    Raises
    ------
    MessageError
        If it cannot be read.
    """
    if DEVICE_DATA not in config:
        return None
    try:
        return DeviceData.model_validate_json(_value(config, DEVICE_DATA, str))
    except ValidationError as error:
        raise MessageError(
            f"expected what must be made of a device's examples as {DEVICE_DATA!r}: "
            f"{one_line(problems_of(error))}"
        ) from error


# ----------------------------------------------------------------------------- down


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every message to a participant says.

    Parameters
    ----------
    seed
        The run's.
    model
        The participant's architecture.
    arrays
        The received weights; empty where none are sent. A Flower strategy puts them beside :meth:`config`.
    fixed
        Weights that a round does not train.
    control
        The server's control variate, of every weight; empty where there is none.
    """

    type: ClassVar[str]

    seed: int
    model: ModelSettings
    arrays: State = field(default_factory=dict)
    fixed: State = field(default_factory=dict)
    control: State = field(default_factory=dict)
    backbone_sha256: str = field(default="", compare=False)
    """What a message that arrived says of the weights of the sender's backbone; empty without one."""

    def config(self) -> Config:
        """Return the settings as ``config`` holds them, for a Flower strategy's ``train_config`` too."""
        cut = cut_of(self.model)
        backbone = {} if cut is None else {BACKBONE: cut.weights_sha256}
        return {"seed": self.seed, "model": self.model.model_dump_json(), **backbone}

    def transfer(self) -> State:
        """Return what ``transfer`` holds."""
        return {}

    def to_record(self) -> RecordDict:
        """Return the message's content."""
        content, transfer = RecordDict(), self.transfer()
        if self.arrays:
            content[ARRAYS] = ArrayRecord(dict(self.arrays))
        content[CONFIG] = ConfigRecord(self.config())
        if transfer:
            content[TRANSFER] = ArrayRecord(transfer)
        return content

    @classmethod
    def from_record(cls, content: RecordDict) -> Self:
        """Read a message.

        Raises
        ------
        MessageError
            If a setting is missing, or cannot be read.
        """
        config, transfer = record_of(content, CONFIG, ConfigRecord), state_of_record(content, TRANSFER)
        return cls(
            seed=_value(config, "seed", int),
            model=_settings(config, "model", ModelSettings),
            arrays=state_of_record(content, ARRAYS),
            backbone_sha256=_value(config, BACKBONE, str) if BACKBONE in config else "",
            fixed=state_of_record(content, FIXED),
            control=state_of_record(content, CONTROL),
            **cls._more(config, transfer),
        )

    @classmethod
    def _more(cls, config: ConfigRecord, transfer: State) -> dict[str, Any]:
        """Return the fields that a message has beside those of all."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TrainTeacher(Asked):
    """A participant trains a teacher, and uploads its weights or its logits on the transfer set.

    Parameters
    ----------
    settings
        How it is trained, and what is uploaded.
    inputs
        The transfer set's, [N, ...] as stored; None where weights are uploaded.
    more
        What the ServerApp's own ``train_config`` adds.
    head, projection_seed
        Of :class:`QueryStatistics`, where sums over the features of the received weights are sent too.
    seed, model, arrays
        Of :class:`Asked`; without weights each participant draws its own.
    """

    type: ClassVar[str] = "train.teacher"

    settings: TeacherSettings
    inputs: torch.Tensor | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    head: ClosedFormHead | None = None
    projection_seed: int = 0

    def config(self) -> Config:
        """Return the settings."""
        teachers = self.settings.model_dump_json(exclude={"model", "count", "from_"})
        return {**self.more, **super().config(), "teachers": teachers, **self._statistics()}

    def _statistics(self) -> Config:
        if self.head is None:
            return {}
        return {_TOGETHER: self.head.model_dump_json(), "projection-seed": self.projection_seed}

    def transfer(self) -> State:
        """Return the transfer set's inputs."""
        return {} if self.inputs is None else {INPUTS: self.inputs}

    @classmethod
    def _more(cls, config: ConfigRecord, transfer: State) -> dict[str, Any]:
        settings = _settings(config, "teachers", TeacherSettings)
        found = {"settings": settings, "inputs": transfer.get(INPUTS)}
        if _TOGETHER not in config:
            return found
        seed = _value(config, "projection-seed", int)
        return {**found, "head": _thing(config, _TOGETHER, HEADS), "projection_seed": seed}


@dataclass(frozen=True, kw_only=True)
class Evaluate(Asked):
    """A participant evaluates the global model on its own examples.

    Parameters
    ----------
    server_round
        The federated round.
    seed, model, arrays
        Of :class:`Asked`.
    """

    type: ClassVar[str] = "evaluate"

    server_round: int

    def config(self) -> Config:
        """Return the settings."""
        return {"server-round": self.server_round, **super().config()}

    @classmethod
    def _more(cls, config: ConfigRecord, transfer: State) -> dict[str, Any]:
        return {"server_round": _value(config, "server-round", int)}


@dataclass(frozen=True, kw_only=True)
class QueryStatistics(Asked):
    """A participant sends sums over the features of its examples, for a head in closed form.

    Parameters
    ----------
    server_round
        The federated round after which the head is solved for.
    head
        What it is.
    projection_seed
        Of the projection of features, the same for all participants.
    seed, model, arrays
        Of :class:`Asked`. The head's own weights, which features do not depend on, are not sent.
    """

    type: ClassVar[str] = "query.statistics"

    server_round: int
    head: ClosedFormHead
    projection_seed: int

    def config(self) -> Config:
        """Return the settings."""
        return {
            "server-round": self.server_round,
            **super().config(),
            "head": self.head.model_dump_json(),
            "projection-seed": self.projection_seed,
        }

    @classmethod
    def _more(cls, config: ConfigRecord, transfer: State) -> dict[str, Any]:
        return {
            "server_round": _value(config, "server-round", int),
            "head": _thing(config, "head", HEADS),
            "projection_seed": _value(config, "projection-seed", int),
        }


@dataclass(frozen=True, kw_only=True)
class Train(Asked):
    """A participant trains the global model for one federated round.

    Parameters
    ----------
    server_round
        The federated round.
    local
        How a participant trains.
    seed, model, arrays
        Of :class:`Asked`.
    """

    type: ClassVar[str] = "train"

    server_round: int
    local: LocalMode

    def config(self) -> Config:
        """Return the settings."""
        local = self.local.model_dump_json()
        return {"server-round": self.server_round, **super().config(), "local": local}

    @classmethod
    def _more(cls, config: ConfigRecord, transfer: State) -> dict[str, Any]:
        return {
            "server_round": _value(config, "server-round", int),
            "local": _thing(config, "local", LOCAL_MODES),
        }


@dataclass(frozen=True, kw_only=True)
class QueryLogits(Train):
    """A participant distils the last consensus, trains, and sends its logits on public examples.

    Parameters
    ----------
    strategy
        Which loss distils the consensus: see :func:`kdfed.consensus.digest_loss`.
    digest
        How the participant distils it.
    images
        Public examples of a round; None for all.
    count
        How many that are.
    public_sha256
        A hash of all public examples.
    inputs
        The public examples, [M, ...] as stored, in a participant's first message; else None.
    consensus
        float16 [N, C], with the round that it is of; None before the first.
    more
        What else the strategy was given as configuration.
    seed, model, arrays, server_round, local
        Of :class:`Train`. ``model`` is the participant's own architecture. Weights come in its first message
        alone, where it has the federated architecture: what it starts from.
    """

    type: ClassVar[str] = "query.logits"

    strategy: str
    digest: OptimiserSettings
    images: int | None
    count: int
    public_sha256: str
    inputs: torch.Tensor | None = None
    consensus: tuple[int, torch.Tensor] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> Config:
        """Return the settings."""
        return {
            **self.more,
            **super().config(),
            "strategy": self.strategy,
            "digest": self.digest.model_dump_json(),
            "images": self.images or 0,
            "count": self.count,
            "public": self.public_sha256,
            **({} if self.consensus is None else {"consensus-round": self.consensus[0]}),
        }

    def transfer(self) -> State:
        """Return public examples and consensus, those that are sent."""
        inputs = {} if self.inputs is None else {INPUTS: self.inputs}
        return inputs | ({} if self.consensus is None else {CONSENSUS: self.consensus[1]})

    @classmethod
    def _more(cls, config: ConfigRecord, transfer: State) -> dict[str, Any]:
        consensus = None
        if CONSENSUS in transfer:
            consensus = _value(config, "consensus-round", int), transfer[CONSENSUS]
        return {
            **super()._more(config, transfer),
            "strategy": _value(config, "strategy", str),
            "digest": _settings(config, "digest", OptimiserSettings),
            "images": _value(config, "images", int) or None,
            "count": _value(config, "count", int),
            "public_sha256": _value(config, "public", str),
            "inputs": transfer.get(INPUTS),
            "consensus": consensus,
        }


# ----------------------------------------------------------------------------- up


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a participant's training left; the reply to all but hello and evaluate.

    Parameters
    ----------
    num_examples, train_loss, local_steps, label_counts
        See :mod:`kdfed.metrics`; None where it is not told.
    arrays
        Its weights, or ``logits``.
    """

    num_examples: int
    train_loss: float | None = None
    local_steps: int | None = None
    label_counts: Sequence[float] | None = None
    arrays: State = field(default_factory=dict)

    def metrics(self) -> Metrics:
        """Return the numbers."""
        found: Metrics = {NUM_EXAMPLES: self.num_examples}
        if self.train_loss is not None:
            found[TRAIN_LOSS] = self.train_loss
        if self.local_steps is not None:
            found[LOCAL_STEPS] = self.local_steps
        if self.label_counts is not None:
            found[LABEL_COUNTS] = list(self.label_counts)
        return found

    def to_record(self) -> RecordDict:
        """Return the reply's content."""
        content = RecordDict()
        if self.arrays:
            content[ARRAYS] = ArrayRecord(dict(self.arrays))
        content[METRICS] = MetricRecord(self.metrics())
        return content

    @classmethod
    def from_record(cls, content: RecordDict) -> Update:
        """Read a reply whose metrics were checked (:func:`kdfed.metrics.problem_with_metrics`)."""
        metrics = record_of(content, METRICS, MetricRecord)
        counts = metrics.get(LABEL_COUNTS)
        return cls(
            num_examples=int(cast("int", metrics[NUM_EXAMPLES])),
            train_loss=cast("float | None", metrics.get(TRAIN_LOSS)),
            local_steps=cast("int | None", metrics.get(LOCAL_STEPS)),
            label_counts=counts if isinstance(counts, list) else None,
            arrays=state_of_record(content, ARRAYS),
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a participant found on its own examples: the reply to :class:`Evaluate`."""

    num_examples: int
    loss: float
    accuracy: float

    def metrics(self) -> Metrics:
        """Return the numbers."""
        return {NUM_EXAMPLES: self.num_examples, EVAL_LOSS: self.loss, EVAL_ACCURACY: self.accuracy}

    def to_record(self) -> RecordDict:
        """Return the reply's content."""
        return RecordDict({METRICS: MetricRecord(self.metrics())})

    @classmethod
    def from_record(cls, content: RecordDict) -> Evaluation:
        """Read a reply whose metrics were checked."""
        metrics = cast("Mapping[str, float]", record_of(content, METRICS, MetricRecord))
        return cls(
            num_examples=int(metrics[NUM_EXAMPLES]),
            loss=metrics[EVAL_LOSS],
            accuracy=metrics[EVAL_ACCURACY],
        )


# ----------------------------------------------------------------------------- around the logical message


ReplyKind: TypeAlias = Literal["mean", "each"]


@dataclass(frozen=True)
class Cohorts:
    """Who a network message is for.

    Parameters
    ----------
    cohorts
        Participants by cohort, in participant order.
    variants
        For each participant, in the same order, which of the distinct contents is for it.
    reply
        ``mean``: one weighted mean per cohort comes back; ``each``: one result per participant.
    limits
        What each participant's work must keep to before it is summed. Default: the server looks at each.
    """

    cohorts: tuple[tuple[int, ...], ...]
    variants: tuple[int, ...]
    reply: ReplyKind
    limits: Limits | None = None

    @cached_property
    def participants(self) -> tuple[int, ...]:
        """All participants, in order."""
        return tuple(participant for cohort in self.cohorts for participant in cohort)

    def to_record(self) -> ConfigRecord:
        """Return the record."""
        limits: dict[str, Any] = {}
        if self.limits is not None:
            limits = {_MAX_EXAMPLES: self.limits.examples, _UPDATE_BOUND: self.limits.update_bound}
            if self.limits.buffers:
                limits[_BUFFERS] = sorted(self.limits.buffers)
        return ConfigRecord(
            {
                "participants": list(self.participants),
                "sizes": [len(cohort) for cohort in self.cohorts],
                "variants": list(self.variants),
                "reply": self.reply,
                **limits,
            }
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Cohorts:
        """Read a record.

        Raises
        ------
        MessageError
            If a key is missing or the lists do not fit together.
        """
        try:
            participants = [int(p) for p in record["participants"]]
            sizes = [int(size) for size in record["sizes"]]
            variants = tuple(int(v) for v in record["variants"])
            reply = record["reply"]
            limits = None
            if _UPDATE_BOUND in record:
                buffers = frozenset(map(str, record.get(_BUFFERS, ())))
                limits = Limits(int(record[_MAX_EXAMPLES]), float(record[_UPDATE_BOUND]), buffers)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MessageError(
                f"expected cohorts with participants, sizes, variants and reply: {error!r}"
            ) from error
        if (
            sum(sizes) != len(participants)
            or len(variants) != len(participants)
            or reply not in ("mean", "each")
        ):
            raise MessageError(
                f"expected sizes and variants for {len(participants)} participants and reply mean or each, "
                f"got sizes {sizes}, {len(variants)} variants, reply {reply!r}"
            )
        if not participants or min(sizes) < 0 or not 0 <= min(variants) <= max(variants) < len(variants):
            raise MessageError(
                "expected participants, sizes of at least 0 and variants that are numbered from 0, got "
                f"{len(participants)} participants, sizes {sizes!r:.80}, variants {variants!r:.80}"
            )
        ends = np.cumsum(sizes).tolist()
        cohorts = tuple(tuple(participants[end - size : end]) for size, end in zip(sizes, ends, strict=True))
        return cls(cohorts, variants, reply, limits)


_MAX_EXAMPLES, _UPDATE_BOUND, _BUFFERS = "max-examples", "update-bound", "buffers"


@dataclass(frozen=True)
class Answers:
    """Who answered a network message.

    Parameters
    ----------
    participants
        Everybody the message was for.
    results
        For each, the index of the result that holds its work, or -1 when it is left out.
    local_steps
        For each, the optimiser steps made; 0 when it is left out.
    reasons
        For each, why it is left out; empty when it is not.
    """

    participants: tuple[int, ...]
    results: tuple[int, ...]
    local_steps: tuple[int, ...]
    reasons: tuple[str, ...]

    def to_record(self) -> ConfigRecord:
        """Return the record."""
        return ConfigRecord(
            {
                "participants": list(self.participants),
                "results": list(self.results),
                "local-steps": list(self.local_steps),
                "reasons": list(self.reasons),
            }
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Answers:
        """Read a record.

        Raises
        ------
        MessageError
            If a key is missing, a list holds something else than whole numbers or texts, or the lists have
            different lengths.
        """
        kinds = {"participants": int, "results": int, "local-steps": int, "reasons": str}
        try:
            columns = {key: tuple(record[key]) for key in kinds}
        except (KeyError, TypeError) as error:
            raise MessageError(f"expected answers with one entry a participant: {error!r}") from error
        for key, kind in kinds.items():
            wrong = [value for value in columns[key] if type(value) is not kind]
            if wrong:
                raise MessageError(
                    f"expected {kind.__name__} in the list {key} of answers, got {wrong[0]!r:.40}"
                )
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1:
            raise MessageError(
                f"expected one entry a participant in every list, got lengths {sorted(lengths)}"
            )
        return cls(*columns.values())

    def members(self, asked: Cohorts) -> dict[int, list[int]]:
        """Return the participants whose work is in each result, in their order.

        Raises
        ------
        MessageError
            If these are not answers of those who were asked: other participants, a result of participants of
            two cohorts, two of one cohort's mean, one of several participants where each has its own, or a
            result that is nobody's.
        """
        if self.participants != asked.participants:
            raise MessageError(
                f"expected answers of {len(asked.participants)} participants ({asked.participants[:5]}...), "
                f"got {len(self.participants)} ({self.participants[:5]}...)"
            )
        cohort_of = [index for index, cohort in enumerate(asked.cohorts) for _ in cohort]
        members: dict[int, list[int]] = {}
        owners: dict[int, int] = {}
        for index, (participant, result) in enumerate(zip(self.participants, self.results, strict=True)):
            if result < 0:
                continue
            members.setdefault(result, []).append(participant)
            owner = cohort_of[index] if asked.reply == "mean" else index
            if owners.setdefault(result, owner) != owner:
                raise MessageError(f"expected a result for each {_OWNER[asked.reply]}, got {result} for two")
        if sorted(owners) != list(range(len(owners))) or len(set(owners.values())) < len(owners):
            raise MessageError(
                f"expected one result for each {_OWNER[asked.reply]} that answered, numbered from 0, got "
                f"{sorted(owners)[-5:]} as the last of {len(owners)}"
            )
        return members


_OWNER = {"mean": "cohort", "each": "participant"}


@dataclass(frozen=True)
class Simulation:
    """Whose data a node of a simulation uses, and how it computes.

    Parameters
    ----------
    data, partition
        Settings, as JSON: they are read where the data are made, once for all messages of a run.
    seed, threads, device, precision
        Of the run.
    names
        Every ``package.module:name`` of the user's that the experiment names: a message may name no other.
    folder
        That of the experiment file, where those modules are looked for too; None for nowhere else.
    store
        Where this arm's and seed's participants keep what lasts between rounds; None for nowhere.
    """

    data: str
    partition: str
    seed: int
    threads: int
    device: str
    precision: Precision
    names: tuple[str, ...] = ()
    folder: Path | None = None
    store: Path | None = None

    @classmethod
    def of(cls, arm: Arm, seed: int, store: Path | None = None, folder: Path | None = None) -> Simulation:
        """Return the simulation of an arm and a seed."""
        names = tuple(code_of(arm))
        return cls(
            data=arm.data.model_dump_json(),
            partition=arm.partition.model_dump_json(),
            seed=seed,
            threads=arm.threads,
            device=arm.device,
            precision=arm.precision,
            names=names,
            folder=folder if names else None,
            store=store,
        )

    def to_record(self) -> ConfigRecord:
        """Return the record."""
        optional = {
            **({} if self.store is None else {"store": str(self.store)}),
            **({"names": json.dumps(self.names)} if self.names else {}),
            **({} if self.folder is None else {"folder": str(self.folder)}),
        }
        return ConfigRecord(
            {
                "data": self.data,
                "partition": self.partition,
                "seed": self.seed,
                "threads": self.threads,
                "device": self.device,
                "precision": self.precision,
                **optional,
            }
        )

    @classmethod
    def from_record(cls, content: RecordDict) -> Simulation | None:
        """Read the simulation of a message; None where it describes none.

        Raises
        ------
        MessageError
            If something is lacking, or of another kind.
        """
        record = record_of(content, SIMULATION, ConfigRecord)
        if not record:
            return None
        try:
            names = tuple(map(str, json.loads(_value(record, "names", str)) if "names" in record else ()))
        except (ValueError, TypeError, RecursionError) as error:
            raise MessageError(f"expected a list of names in a simulation: {one_line(error)}") from error
        return cls(
            data=_value(record, "data", str),
            partition=_value(record, "partition", str),
            seed=_value(record, "seed", int),
            threads=_value(record, "threads", int),
            device=_value(record, "device", str),
            precision="bfloat16" if record.get("precision") == "bfloat16" else "float32",
            names=names,
            folder=Path(_value(record, "folder", str)) if "folder" in record else None,
            store=Path(_value(record, "store", str)) if "store" in record else None,
        )


# ----------------------------------------------------------------------------- one participant alone


_GROUP = "participant-"


def group_of(participant: int) -> str:
    """Return the ``group_id`` of a message to a device: which participant it is, for what it draws."""
    return f"{_GROUP}{participant}"


def participant_of(group_id: str) -> int:
    """Return the participant that a ``group_id`` names; 0 where it is a strategy's own, or empty."""
    number = group_id.removeprefix(_GROUP)
    named = group_id.startswith(_GROUP) and number.isascii() and number.isdigit()
    return int(number) if named and len(number) < _DIGITS else 0


_DIGITS = 19  # of a number that fits into 64 bits


# ----------------------------------------------------------------------------- several in one


def numbered(key: str, index: int, count: int) -> str:
    """Return the record key of item ``index`` of ``count``: plain when there is only one."""
    return key if count == 1 else f"{key}-{index}"


def item(content: RecordDict, index: int, count: int) -> RecordDict:
    """Return content ``index`` of the ``count`` that a network message holds."""
    keys = (ARRAYS, CONFIG, TRANSFER, FIXED, CONTROL)
    records = {key: content.get(numbered(key, index, count)) for key in keys}
    return RecordDict({key: record for key, record in records.items() if record is not None})


# ----------------------------------------------------------------------------- records


def record_of(content: RecordDict, key: str, kind: type[R]) -> R:
    """Return a record of this kind, an empty one where there is none.

    ``content.array_records`` and its like copy all records of a kind at every access.
    """
    record = content.get(key)
    return record if isinstance(record, kind) else kind()


def state_of_record(content: RecordDict, key: str) -> State:
    """Return a record's arrays as tensors; none where there is no record.

    Raises
    ------
    MessageError
        If their bytes cannot be read.
    """
    record = record_of(content, key, ArrayRecord)
    try:
        return {name: torch.from_numpy(numbers_of(array)) for name, array in record.items()}
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise MessageError(f"expected arrays that can be read as {key!r}: {one_line(error)}") from error


def count_bytes(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Return the bytes of a record, as its ``count_bytes`` counts them.

    A number is 8 bytes, a truth value 1, a text as many as it has characters; keys count too. Flower's own
    raises on an empty text, and on an empty list, in a ConfigRecord: here they are 0 bytes, beside their key.
    """
    if isinstance(record, ConfigRecord):
        return sum(len(key) + _bytes_of_value(value) for key, value in record.items())
    return record.count_bytes()


def _bytes_of_value(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_bytes_of_value, value))
    if isinstance(value, str | bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8


def numbers_of(array: Array) -> np.ndarray:
    """Return an array of a message; nothing is allocated but for the numbers that came.

    ``Array.numpy()`` believes whatever a header says.

    Raises
    ------
    ValueError
        If it is packed in another way than NumPy's, or its header says anything else than what follows it.
    """
    if array.stype != "numpy.ndarray":
        raise ValueError(f"expected an array of NumPy's, got {array.stype!r:.40}")
    return read_array(array.data)


def _value(config: Mapping[str, Any], key: str, kind: type[V]) -> V:
    value = config.get(key)
    if type(value) is not kind:
        raise MessageError(f"expected {key!r} in a message, of type {kind.__name__}, got {value!r:.80}")
    return value


S = TypeVar("S", ModelSettings, TeacherSettings, OptimiserSettings)


def _settings(config: Mapping[str, Any], key: str, kind: type[S]) -> S:
    try:
        return kind.model_validate_json(_value(config, key, str))
    except ValidationError as error:
        raise MessageError(f"expected settings as {key!r} in a message: {one_line(error)}") from error


T = TypeVar("T", bound=Thing)


def _thing(config: Mapping[str, Any], key: str, family: Family[T]) -> T:
    try:
        return family.parse(_value(config, key, str))
    except (ValueError, AttributeError, RecursionError) as error:
        raise MessageError(f"expected settings as {key!r} in a message: {one_line(error)}") from error
