"""Sections of an experiment that no family owns, and the types of their numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Items = TypeVar("Items", bound=tuple[object, ...])


def kebab(name: str) -> str:
    """Return a field's key in the file: ``batch_size`` is ``batch-size``, ``from_`` is ``from``."""
    return name.rstrip("_").replace("_", "-")


class Settings(BaseModel):
    """Base of every part of an experiment: frozen, kebab-case, unknown keys forbidden."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=kebab,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _distinct(items: Items) -> Items:
    if len(set(items)) != len(items):
        raise ValueError("expected distinct entries; remove the repeated ones")
    return items


Distinct = AfterValidator(_distinct)

# Ranges end where nobody's experiment is: beyond them float32 overflows, or nothing ever ends.
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Passes = Annotated[int, Field(ge=1, le=10**6)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e4)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Concentration = Annotated[float, Field(gt=0, le=1e9)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
Text = Annotated[str, Field(max_length=4096)]
Options = dict[Text, bool | int | float | Text | Annotated[tuple[int, ...], Field(max_length=1000)]]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Trainable = Annotated[str, Field(pattern=r"^(head|all|last:[1-9][0-9]{0,2})$")]
BatchNormMode = Literal["train", "frozen"]
Weights = Annotated[str, Field(pattern=r"^(installed|download|file:.+)$", max_length=4096)]

NAME_OF_PARTICIPANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Of a device, which survives a new node id."""


# ----------------------------------------------------------------------------- data


class SplitSettings(Settings):
    """Which share of the data is held out before it is partitioned; the rest goes to participants.

    They are cut in this order, so another share of a later one leaves those before it as they are.
    """

    test: Fraction | Literal["official"] = 0.10
    """Share of all examples, or ``official`` for the test part that the source itself has.
    Reported only: nothing is ever selected, stopped, tuned or counted on it."""
    evaluation: Annotated[float, Field(ge=0, lt=1)] = 0.20
    """Share of all examples (with ``test: official``, of those outside the test part). Curves, hits and
    converged accuracies are read on it, and no model, ensemble, temperature, search or stop ever sees it. A
    study, which counts no rounds, has none."""
    validation: Fraction = 0.05
    """Share, counted like ``evaluation``. The server's labelled examples: fitting, choosing and stopping may
    use them."""
    transfer: Fraction = 0.10
    """Share, counted like ``evaluation``, on which teachers and student are compared. Never overlaps another
    split or any participant."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the split. It is not the run's seed, so the test set stays the same for every run."""


class ColumnSettings(Settings):
    """Which columns of a table (``parquet:``, ``csv:``, ``hf:``) hold what."""

    inputs: Text | tuple[Text, ...] | None = None
    """The image column, or the feature columns. Default: the only image column, else every numeric
    column that is not the label."""
    label: Text | None = None
    """The label column. Default: the only column of Hugging Face type ``ClassLabel``, else ``label``."""


class NormaliseSettings(Settings):
    """Fixed normalisation ``(x - mean) / std``, per channel or per feature."""

    mean: tuple[Annotated[float, Field(ge=-1e30, le=1e30)], ...]
    """One number per channel (images, after scaling to [0, 1]) or per feature."""
    std: tuple[Annotated[float, Field(ge=1e-30, le=1e30)], ...]
    """One number above 0 per channel or feature."""


DEVICES = "devices"
"""The source of an experiment whose participants are devices with data of their own."""


def _images_or_features(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (1, 3):
        raise ValueError("expected [channels, height, width] or [features]")
    return shape


class DataSettings(Settings):
    """Where the examples come from.

    Class indices, shape and normalisation are fixed by these keys (or by what the source declares), never by
    the files that happen to be present.
    """

    task: Literal["classification", "regression"] = "classification"
    """What is learnt: one of several classes, or a number. Numbers are standardised by mean and std of the
    transfer split's labels, and their score is R^2 wherever an accuracy is named: in targets and records."""
    source: Text = "mnist5k"
    """``mnist5k``, ``digits``, ``diabetes`` (regression), ``parquet:PATH``, ``csv:PATH``, ``npz:PATH``,
    ``hf:NAME``, ``torchvision:NAME``, ``folder:PATH``, ``synthetic:KEY=VALUE,...`` or
    ``package.module:name``. ``devices``: each device's own, which its node-config names; the server's are
    those of ``server-data``."""
    splits: SplitSettings = SplitSettings()
    """The held-out shares."""
    limit: PositiveInt | None = None
    """Use only this many examples, drawn with the split's seed. Default: all."""
    columns: ColumnSettings | None = None
    """For ``parquet:``, ``csv:`` and ``hf:`` only, and for devices that have such tables. Default: found by
    the rules of each key."""
    classes: PositiveInt | tuple[Text, ...] | None = None
    """Number or names of the classes, in label order. Required where the source does not declare them; a
    regression has none."""
    shape: Annotated[tuple[PositiveInt, ...], AfterValidator(_images_or_features)] | None = None
    """``[channels, height, width]``: images are converted and resized to it. ``[features]``: rows must have
    so many. Default: as stored."""
    normalise: NormaliseSettings | Literal["auto"] = "auto"
    """``auto``: known constants for known sources, mean 0.5 and std 0.5 for other images, statistics of
    the transfer split for feature tables."""

    deals: ClassVar[bool] = True
    """Whether what is not held out goes to participants."""

    @property
    def of_devices(self) -> bool:
        """Whether each participant is a device with data of its own."""
        return self.source == DEVICES

    @model_serializer(mode="wrap")
    def _without_what_devices_lack(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        nothing = ("splits", "limit") if self.of_devices else ()
        return {key: value for key, value in values.items() if key not in nothing}


class ServerSplits(SplitSettings):
    """Which share of the server's own examples is what; a rest is nobody's."""

    test: Fraction | Literal["official"] = 0.20
    """Share of all examples, or ``official`` for the source's own test part. Reported only."""
    evaluation: Share = 0.40
    """Share of all examples (of those outside an official test part) on which rounds are counted; no model,
    ensemble, temperature, search or stop ever sees it."""
    validation: Fraction = 0.10
    """Share, counted like ``evaluation``. The server's labelled examples: fitting, choosing and stopping may
    use them."""
    transfer: Fraction = 0.30
    """Share, counted like ``evaluation``, on which teachers and student are compared."""


class ServerDataSettings(Settings):
    """The server's own examples, where participants are devices (``data.source: devices``).

    Task, classes, shape and normalisation are those of ``data``.
    """

    source: Text
    """As ``data.source``."""
    splits: ServerSplits = ServerSplits()
    """What they are for."""
    limit: PositiveInt | None = None
    """Use only this many examples, drawn with the split's seed. Default: all."""
    columns: ColumnSettings | None = None
    """For ``parquet:``, ``csv:`` and ``hf:`` only. Default: those of ``data``, for such sources."""


class HeldData(DataSettings):
    """What is loaded of the server's own examples: see :func:`held_data`."""

    splits: SplitSettings = ServerSplits()
    """What they are for."""

    deals: ClassVar[bool] = False


def held_data(data: DataSettings, server: ServerDataSettings) -> HeldData:
    """Return how the server's own examples are loaded, beside devices with data of their own."""
    columns = server.columns or (data.columns if is_table(server.source) else None)
    return HeldData(
        task=data.task,
        source=server.source,
        splits=server.splits,
        limit=server.limit,
        columns=columns,
        classes=data.classes,
        shape=data.shape,
        normalise=data.normalise,
    )


def is_table(source: str) -> bool:
    """Tell whether a source has columns that ``columns`` can name."""
    return source.startswith(("parquet:", "csv:", "hf:"))


# ----------------------------------------------------------------------------- models and training


HEAD = "linear"
"""The only model on a backbone: a linear head."""

_OF_BACKBONES = ("weights", "trainable", "batch_norm", "size")


class ModelSettings(Settings):
    """A model, fitted to the data's input shape and number of classes."""

    backbone: Text | None = None
    """A pre-trained network below a linear head: ``efficientnet-lite0``, ``-lite1``, ``-lite2``,
    ``torchvision:NAME`` or ``package.module:name``, see [Backbones](backbones.md). Default: none, the model
    is trained from nothing."""
    name: Text = Field(default_factory=lambda data: HEAD if data.get("backbone") else "cnn")
    """``cnn``, ``mlp``, ``resnet8``, ``resnet18``, ``torchvision:NAME`` or ``package.module:name``. On a
    backbone it is ``linear``."""
    options: Options = {}
    """Keyword arguments of the model, e.g. ``{width: 32}``, or of the backbone; checked against its
    signature."""
    weights: Weights = "installed"
    """Of the backbone. ``installed``: what is on this machine already, never the network. ``download``:
    fetched once by torchvision. ``file:PATH``: a state dict, ``.safetensors`` or ``.pt``/``.pth``; a pickle
    of anything else is refused and never executed."""
    trainable: Trainable = "head"
    """What is trained, and travels: ``head``, a linear layer on frozen features; ``last:N``, the last N
    stages of the backbone too; ``all``, every stage."""
    batch_norm: BatchNormMode | None = None
    """Of the stages that are trained. ``frozen``: the statistics that came with the weights, for ever; scale
    and shift are trained. ``train``: those of each batch, as in any other model. Default: frozen where that
    can be, see [Backbones](backbones.md#batchnorm-in-trained-stages); not beside ``trainable: head``."""
    size: Pixels | None = None
    """Height and width, in pixels, that images are resized to. Default: the backbone's own."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.backbone is None:
            given = [kebab(key) for key in _OF_BACKBONES if key in self.model_fields_set]
            if given:
                raise ValueError(f"expected a backbone beside {' and '.join(given)}; name one, or remove it")
        elif self.name != HEAD:
            raise ValueError(f"expected no name, or {HEAD}, beside a backbone; remove one of them")
        elif self.trainable == "head" and self.batch_norm is not None:
            raise ValueError(
                "expected trainable: last:N or all beside batch-norm, of which a head has none; set it, or "
                "remove batch-norm"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        nothing = {"backbone", *map(kebab, _OF_BACKBONES)} if self.backbone is None else set()
        if self.trainable == "head":
            nothing.add("batch-norm")
        return {key: value for key, value in values.items() if key not in nothing}

    @property
    def reads(self) -> str:
        """What it reads, equal for models that read the same; empty where those are normalised inputs."""
        return "" if self.backbone is None else self.model_dump_json(exclude={"batch_norm"})

    @property
    def title(self) -> str:
        """What people call it: its name, or that of its backbone and what is trained."""
        norm = "" if self.batch_norm is None else f", batch-norm {self.batch_norm}"
        return self.name if self.backbone is None else f"{self.backbone}, {self.trainable}{norm}"


def with_batch_norm(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded model with the ``batch-norm`` that it had before there was such a key."""
    trained = model.get("backbone") is not None and model.get("trainable") not in (None, "head")
    return {**({"batch-norm": "train"} if trained else {}), **model}


def several(models: ModelSettings | tuple[ModelSettings, ...] | None) -> tuple[ModelSettings, ...]:
    """Return the architectures that a key names: one, a list, or none."""
    return () if models is None else models if isinstance(models, tuple) else (models,)


class OptimiserSettings(Settings):
    """Mini-batch training."""

    epochs: Passes = 1
    """Passes over the examples."""
    batch_size: PositiveInt = 10
    """Examples a step; the last batch of an epoch may be smaller."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """torch.optim optimiser; its state starts afresh each time."""
    lr: Rate = 0.05
    """Learning rate, above 0."""
    momentum: Momentum = 0.0
    """Momentum in [0, 1), for sgd only; 0 turns it off."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """L2 penalty (decoupled for adamw); 0 turns it off."""


class LabelCountSettings(Settings):
    """Whether teachers tell how many examples of each class they were trained on."""

    send: bool = False
    """Send the counts with the teacher's reply."""
    epsilon: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    """Add Laplace noise of scale 1 / epsilon to each count (one example changes one count by one, so the
    counts are epsilon-differentially private). Default: exact counts. The total is not protected: the reply
    says in ``num-examples`` how many examples there are."""


class TeacherFile(Settings):
    """A model that lies in a file, and what the file does not say of it."""

    file: Text
    """A ``.safetensors`` file, or a ``.pt`` or ``.pth`` file of ``torch.save(model.state_dict(), path)``.
    Nothing in it is run."""
    model: ModelSettings | None = None
    """Name and options of its model. Default: what the file says; one that kdfed wrote says it. A model of
    yours (``package.module:name``) is named here in any case, because it is code."""
    classes: (
        Annotated[tuple[Text | Annotated[int, Field(ge=0, le=10**9)] | None, ...], Field(min_length=1)] | None
    ) = None
    """For each of its outputs in their order the name of the data's class, or null where it says nothing of
    any: a teacher may know some of the classes, in an order of its own. Default: the names in the file; where
    it has none, the data's classes in their order."""
    normalise: NormaliseSettings | None = None
    """How inputs were normalised when it was trained, where the file does not say it. Default: as the
    data."""
    label_counts: (
        Annotated[tuple[Annotated[float, Field(ge=0, le=1e12)], ...], Field(min_length=1)] | None
    ) = None
    """Examples of each output that it was trained on, in the order of the outputs, for the ensemble
    ``label-counts``. Default: equally many of each that it knows."""


class TeacherSettings(OptimiserSettings):
    """The participants' own training before the first round."""

    from_: Text | Annotated[tuple[Text | TeacherFile, ...], Field(min_length=1)] | None = None
    """Teachers that exist already: a folder whose model files, in the order of their names, are those of the
    participants 0, 1, 2...; or a list of files. Nothing is trained then, and the keys of training have no
    effect. Default: participants train them."""

    epochs: Passes = 10
    """Passes over the participant's examples."""
    momentum: Momentum = 0.0
    """Momentum in [0, 1), for sgd only; 0 turns it off."""
    count: PositiveInt | Literal["all"] = "all"
    """How many participants train a teacher, drawn with the run's seed."""
    init: Literal["common", "own"] = "common"
    """Start from the same initial weights, or each from its own."""
    upload: Literal["weights", "logits"] = "weights"
    """What a teacher uploads: its weights, or only its logits on the transfer set, as float16."""
    model: ModelSettings | Annotated[tuple[ModelSettings, ...], Field(min_length=1)] | None = None
    """The teachers' architecture; a list is dealt to participants in turn. Default: the federated model."""
    label_counts: LabelCountSettings = LabelCountSettings()
    """Label counts, sent for the ensemble ``label-counts`` only."""

    @property
    def start_common(self) -> bool:
        """Whether teachers are trained, and start from the common initial weights."""
        return self.from_ is None and self.init == "common"

    @property
    def files(self) -> tuple[str, ...]:
        """The folder or the files that ``from`` names; none without it."""
        named = (self.from_,) if isinstance(self.from_, str) else self.from_ or ()
        return tuple(one if isinstance(one, str) else one.file for one in named)


Augmentation = Literal["flip", "crop"]


class DistillationSettings(OptimiserSettings):
    """Training a student on the transfer set."""

    labels: bool = False
    """Use the labels of the transfer set."""
    epochs: Passes = 60
    """Passes over the transfer set."""
    batch_size: PositiveInt = 64
    """Examples a step."""
    lr: Rate = 0.05
    """Learning rate, above 0."""
    momentum: Momentum = 0.0
    """Momentum in [0, 1), for sgd only; 0 turns it off."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the epochs; ``cosine`` decays to 0."""
    warm_up: Share = 0.1
    """Share of the steps, in [0, 1], over which the learning rate rises in equal parts to what it is without
    warm-up; 0 turns it off."""
    clip: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Norm that the gradient of a step is scaled down to where it is larger; 0 turns it off."""
    augmentation: Annotated[tuple[Augmentation, ...], Distinct] = ()
    """Random changes of the transfer images while distilling: ``flip`` (left-right), ``crop`` (pad by an
    eighth, crop back)."""
    views: PositiveInt | None = None
    """Changed copies of each transfer image, drawn once: teachers answer for each once, and an epoch passes
    over all. Default: fresh changes in every step, each of which every teacher answers. Only with
    ``augmentation``."""
    select: Literal["last", "best"] = "last"
    """Keep the last student, or the best of all epochs on the validation split."""


class ServerFitSettings(OptimiserSettings):
    """Training a model on the server's own labelled examples, without any participant."""

    labels: bool = False
    """Fit the labels of the transfer split too, not only those of the validation split."""
    epochs: Passes = 100
    """Passes over the server's labelled examples."""
    batch_size: PositiveInt = 32
    """Examples a step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """torch.optim optimiser."""
    lr: Rate = 0.003
    """Learning rate, above 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.3
    """L2 penalty (decoupled for adamw: a step takes ``lr`` times this of each weight); 0 turns it off."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the epochs; ``cosine`` decays to 0."""
    augmentation: Annotated[tuple[Augmentation, ...], Distinct] | Literal["auto"] = "auto"
    """Random changes of the images in every step: ``flip`` (left-right), ``crop`` (pad by an eighth, crop
    back). ``auto`` crops images of at least 16 by 16 pixels, and leaves smaller ones and feature vectors as
    they are."""


# ----------------------------------------------------------------------------- rounds


class ListenerSettings(Settings):
    """A list; each entry is somebody who follows the arm, see [Your own listener](own/listener.md)."""

    name: Text
    """``package.module:name`` of a class, or of a function that returns a listener."""
    options: Options = {}
    """Its keyword arguments."""


class PlateauSettings(Settings):
    """When a curve counts as flat, see [the rules](records.md#convergence)."""

    rounds: PositiveInt = 20
    """Flat when the best mean of five successive evaluations did not rise over so many of the last rounds, or
    over the last half of them if that is more..."""
    min_delta: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """...by more than this accuracy in [0, 1)."""
    stop: bool = False
    """Stop the arm there, by its curve on the validation split. Only where there is a single arm: arms that
    are compared run equally long."""


class RoundSettings(Settings):
    """How long an arm runs and when its curve is flat."""

    horizon: Annotated[int, Field(ge=0, le=10**6)] | Literal["auto"] = 60
    """Federated rounds of every arm; 0 evaluates the start only. ``auto``: 1.5 times the round at which the
    baseline's curve is flat on the seeds of ``tuning``, which is run first."""
    why: Text = ""
    """Where the horizon's number comes from, for the record; ``kdfed tune`` writes it."""
    stop_at_target: bool = False
    """Stop the arm when it has reached every target, by its curve on the validation split. Only where there
    is a single arm."""
    plateau: PlateauSettings = PlateauSettings()
    """When a curve counts as flat."""
