"""The sections of an experiment: data, partition, model, training, consolidation, server, rounds."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Items = TypeVar("Items", bound=tuple[object, ...])


def kebab(name: str) -> str:
    """Return a field's key in the file: ``batch_size`` is ``batch-size``."""
    return name.replace("_", "-")


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


# ----------------------------------------------------------------------------- data and partition


class SplitSettings(Settings):
    """Which share of the data is held out before it is partitioned; the rest goes to participants."""

    test: Fraction | Literal["official"] = 0.15
    """Share of all examples, or ``official`` for the test part that the source itself has.
    Reported only: nothing is ever selected, stopped or tuned on it."""
    validation: Fraction = 0.10
    """Share of all examples (with ``test: official``, of those outside the test part). Targets, stopping
    and every selection use it."""
    transfer: Fraction = 0.15
    """Share, counted like ``validation``, on which teachers and student are compared. Never overlaps
    another split or any participant."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the split. It is not the run's seed, so the test set stays the same for every run."""


class ColumnSettings(Settings):
    """Which columns of a table (``parquet:``, ``hf:``) hold what."""

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


class DataSettings(Settings):
    """Where the examples come from.

    Class indices, shape and normalisation are fixed by these keys (or by what the source declares), never by
    the files that happen to be present.
    """

    task: Literal["classification", "regression"] = "classification"
    """What is learnt: one of several classes, or a number. Numbers are standardised by mean and std of the
    transfer split's labels, and their score is R^2 wherever an accuracy is named: in targets and records."""
    source: Text = "mnist5k"
    """``mnist5k``, ``digits``, ``diabetes`` (regression), ``parquet:PATH``, ``hf:NAME``,
    ``torchvision:NAME``, ``folder:PATH``, ``synthetic:KEY=VALUE,...`` or ``package.module:name``."""
    splits: SplitSettings = SplitSettings()
    """The held-out shares."""
    limit: PositiveInt | None = None
    """Use only this many examples, drawn with the split's seed. Default: all."""
    columns: ColumnSettings | None = None
    """For ``parquet:`` and ``hf:`` only. Default: found by the rules of each key."""
    classes: PositiveInt | tuple[Text, ...] | None = None
    """Number or names of the classes, in label order. Required where the source does not declare them; a
    regression has none."""
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=3)] | None = None
    """``[channels, height, width]``: images are converted and resized to it. Default: as stored."""
    normalise: NormaliseSettings | Literal["auto"] = "auto"
    """``auto``: known constants for known sources, mean 0.5 and std 0.5 for other images, statistics of
    the transfer split for feature tables."""


class PartitionBase(Settings):
    """What every data distribution has."""

    participants: PositiveInt = 20
    """Number of participants."""
    min_examples: PositiveInt = 1
    """Every participant holds at least this many: single examples move from the largest participants,
    and the record says how many."""


class UniformPartition(PartitionBase):
    """IID: shuffled, equal sizes."""

    kind: Literal["uniform"]


class QuantitySkewPartition(PartitionBase):
    """IID labels, sizes drawn from a symmetric Dirichlet distribution."""

    kind: Literal["quantity-skew"]
    alpha: Concentration
    """Concentration of the sizes, above 0; smaller is more skewed."""


class LabelOverlapPartition(PartitionBase):
    """Label skew with overlap: a participant draws from its own group of classes and, in part, from all."""

    kind: Literal["label-overlap"]
    classes: PositiveInt = 2
    """Classes in a participant's own group. With fewer participants than groups, what belongs to the
    groups of nobody is left out."""
    overlap: Share
    """Share of a participant's examples drawn from all classes alike: 0 is disjoint groups, 1 is uniform."""


class KClassesPartition(PartitionBase):
    """Pathological: every participant holds exactly k classes."""

    kind: Literal["k-classes"]
    classes: PositiveInt
    """Classes that each participant holds, k. Where participants x k does not exceed the number of classes,
    participants are disjoint, and the examples of classes that nobody holds are left out."""


class DirichletPartition(PartitionBase):
    """Label skew: each class is dealt to participants by a draw from a symmetric Dirichlet distribution."""

    kind: Literal["dirichlet"]
    alpha: Concentration
    """Concentration, above 0; smaller is more skewed."""


PartitionSettings = Annotated[
    UniformPartition | QuantitySkewPartition | LabelOverlapPartition | KClassesPartition | DirichletPartition,
    Field(discriminator="kind"),
]


# ----------------------------------------------------------------------------- models and training


class ModelSettings(Settings):
    """A model, fitted to the data's input shape and number of classes."""

    name: Text = "cnn"
    """``cnn``, ``mlp``, ``resnet8``, ``resnet18``, ``torchvision:NAME`` or ``package.module:name``."""
    options: dict[Text, bool | int | float | Text | tuple[int, ...]] = {}
    """Keyword arguments of the model, e.g. ``{width: 32}``; checked against its signature."""


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


class PlainLocal(OptimiserSettings):
    """Local training by cross entropy."""

    mode: Literal["plain"] = "plain"


class ProximalLocal(OptimiserSettings):
    """Cross entropy plus ``mu / 2 * ||w - w_received||^2`` (FedProx, Li et al. 2020, equation 2)."""

    mode: Literal["proximal"]
    mu: Weight
    """Weight of the proximal term; 0 is plain training."""


class KDLocal(OptimiserSettings):
    """Cross entropy plus distillation from the received model, which stays frozen."""

    mode: Literal["kd"]
    temperature: Temperature = 3.0
    """Temperature T, above 0."""
    weight: Share = 0.5
    """Weight w of the distillation term in [0, 1]; 0 is plain training."""


class NTDLocal(OptimiserSettings):
    """Cross entropy plus distillation of the classes that are not the label, from the received model."""

    mode: Literal["ntd"]
    temperature: Temperature = 1.0
    """Temperature T, above 0."""
    beta: Weight = 1.0
    """Weight of the not-true distillation term; 0 is plain training."""


class MutualLocal(OptimiserSettings):
    """The received model and a personal one teach each other (FML, Shen et al. 2020), at temperature 1.

    The received model is uploaded; the personal one stays with its participant from round to round.
    """

    mode: Literal["mutual"]
    alpha: Share = 0.5
    """Weight of cross entropy in the personal model's loss, in [0, 1]; the rest goes to distillation from the
    received model."""
    beta: Share = 0.5
    """Weight of cross entropy in the received model's loss, in [0, 1]; the rest goes to distillation from the
    personal model. 1 is plain training of the received model."""
    model: ModelSettings | None = None
    """The personal models' architecture. Default: the federated model."""


LocalSettings = Annotated[
    PlainLocal | ProximalLocal | KDLocal | NTDLocal | MutualLocal, Field(discriminator="mode")
]


class LabelCountSettings(Settings):
    """Whether teachers tell how many examples of each class they were trained on."""

    send: bool = False
    """Send the counts with the teacher's reply."""
    epsilon: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    """Add Laplace noise of scale 1 / epsilon to each count (one example changes one count by one, so the
    counts are epsilon-differentially private). Default: exact counts. The total is not protected: the reply
    says in ``num-examples`` how many examples there are."""


class TeacherSettings(OptimiserSettings):
    """The participants' own training before the first round."""

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


Ensemble = Literal["mean-logits", "mean-probabilities", "label-counts", "confidence", "validated"]
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
    augmentation: Annotated[tuple[Augmentation, ...], Distinct] = ()
    """Random changes of the transfer images while distilling: ``flip`` (left-right), ``crop`` (pad by an
    eighth, crop back)."""
    views: PositiveInt | None = None
    """Changed copies of each transfer image, drawn once: teachers answer for each once, and an epoch passes
    over all. Default: fresh changes in every step, each of which every teacher answers. Only with
    ``augmentation``."""
    select: Literal["last", "best"] = "last"
    """Keep the last student, or the best of all epochs on the validation split."""


class GeneratorSettings(Settings):
    """The generator of the transfer set ``generated``, trained against the teachers (Chen et al. 2019)."""

    steps: Passes = 200
    """Optimiser steps (Adam)."""
    batch_size: Annotated[int, Field(ge=2, le=10**6)] = 128
    """Examples a step, 2 or more: each class should be among them."""
    lr: Rate = 0.001
    """Learning rate, above 0."""
    latent: PositiveInt = 100
    """Standard normal values that an example is drawn from."""
    width: PositiveInt = 16
    """Channels of the last hidden layer, twice as many before; for feature vectors, a quarter of the hidden
    units."""
    one_hot_weight: Weight = 1.0
    """Weight of the one-hot loss: the teachers should be sure of each example. 0 turns it off."""
    entropy_weight: Weight = 5.0
    """Weight of the information entropy: a batch should hold all classes alike. 0 turns it off."""
    activation_weight: Weight = 0.1
    """Weight of the activation loss: what enters the teachers' last linear layer should be large. 0 turns it
    off."""


def _known_to_the_server(transfer: object) -> object:
    if transfer in ("own", "teacher", "union"):
        raise ValueError(
            "expected public, noise, proxy or generated: the server of a federated run has no participant's "
            "data (a study has)"
        )
    return transfer


class ConsolidationBase(DistillationSettings):
    """What every KD method has."""

    transfer: Annotated[
        Literal["public", "noise", "proxy", "generated"], BeforeValidator(_known_to_the_server)
    ] = "public"  # fmt: skip
    """On what teachers and student are compared: ``public`` (the transfer split), ``noise``, ``proxy``
    (images of another data set) or ``generated`` (from the teachers). Only ``public`` has labels, and only
    there ``teachers.upload`` can be ``logits``."""
    images: PositiveInt | None = None
    """How many examples the transfer set has, for all but ``public``. Default: as many as the transfer
    split."""
    proxy: DataSettings | None = None
    """The data source of the transfer set ``proxy``: its images are resized to the task's, its labels never
    used."""
    generator: GeneratorSettings | None = None
    """The generator of the transfer set ``generated``. Default: the defaults of its keys."""

    init: Literal["random", "common", "averaged"] = "common"
    """The student starts from a draw of its own, from the common initial weights (those of a cold
    start), or from the average of the teachers' weights."""


class VanillaConsolidation(ConsolidationBase):
    """Vanilla KD (Hinton et al. 2015) from the ensemble of teachers into one student."""

    method: Literal["vanilla"] = "vanilla"
    """The KD method."""
    ensemble: Ensemble = "mean-probabilities"
    """How the teachers' outputs become one target."""
    temperature: Temperature = 3.0
    """Temperature T of the distillation term, above 0."""
    weight: Share = 1.0
    """Weight w of the distillation term; 1 - w goes to cross entropy. Below 1 only with ``labels``."""


class TunedConsolidation(ConsolidationBase):
    """Tuned KD: vanilla KD for each temperature and weight of a search; the best on validation stays."""

    method: Literal["tuned"]
    """The KD method."""
    ensemble: Ensemble = "mean-probabilities"
    """How the teachers' outputs become one target."""
    temperatures: Annotated[
        tuple[Temperature, ...], Field(min_length=1), Distinct
    ] = (1.0, 2.0, 3.0, 5.0, 10.0)  # fmt: skip
    """Temperatures T to try, above 0."""
    weights: Annotated[
        tuple[Share, ...], Field(min_length=1), Distinct
    ] = (1.0,)  # fmt: skip
    """Weights w to try. Below 1 only with ``labels``."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """Every pair of the grid, or pairs of it that Optuna draws: at random, or by its Parzen estimator."""
    trials: PositiveInt | None = None
    """Pairs that ``random`` and ``tpe`` try, at most as many as the grid has."""


class MutualConsolidation(ConsolidationBase):
    """Deep mutual learning (Zhang et al. 2018): teachers and student train each other."""

    method: Literal["mutual"]
    """The KD method."""


class PartitionedConsolidation(ConsolidationBase):
    """Data-partitioning KD (Roth et al. 2024): each example from whichever model is surest of it."""

    method: Literal["partitioned"]
    """The KD method."""
    temperature: Temperature = 3.0
    """Temperature T of the distillation term, above 0."""
    weight: Share = 1.0
    """Weight w of the distillation term; 1 - w goes to cross entropy. Below 1 only with ``labels``."""


ConsolidationSettings = Annotated[
    VanillaConsolidation | TunedConsolidation | MutualConsolidation | PartitionedConsolidation,
    Field(discriminator="method"),
]


# ----------------------------------------------------------------------------- server and rounds


class DeadlineSettings(Settings):
    """Seconds until a missing reply counts as late."""

    hello: Seconds = 120.0
    """For the first contact."""
    teachers: Seconds = 3600.0
    """For the teacher exchange."""
    train: Seconds = 3600.0
    """For one federated round."""


class ServerBase(Settings):
    """What every strategy has."""

    sampled: PositiveInt | Fraction | Literal["all"] = "all"
    """Participants sampled a round: a number, a share in (0, 1), or all."""
    minimum: PositiveInt = 1
    """A round goes on while at least this many participants answered."""
    cohort_size: PositiveInt = 8
    """At most this many participants are trained together in one call. Part of the experiment: another
    value agrees to float tolerance, not to the bit."""
    max_examples: PositiveInt = 10_000_000
    """A participant that says it has more examples is left out; so is one that says more than at hello."""
    update_bound: Annotated[float, Field(gt=0, le=1e60)] = 100.0
    """A participant is left out whose weights differ from those that it was sent by a norm of more than this,
    times the norm of those sent or 1, whichever is larger. Its buffers (BatchNorm's statistics) may differ by
    the square of it, and by 1e8 times their norm in any case."""
    deadlines: DeadlineSettings = DeadlineSettings()
    """When a missing reply counts as late."""


class FedAvgServer(ServerBase):
    """Federated averaging (McMahan et al. 2017)."""

    strategy: Literal["fedavg"] = "fedavg"


class FedProxServer(ServerBase):
    """FedAvg with proximal local training (Li et al. 2020).

    Needs ``local.mode: proximal``, whose ``mu`` it sends.
    """

    strategy: Literal["fedprox"]


class FedAvgMServer(ServerBase):
    """FedAvg with server momentum (Hsu et al. 2019)."""

    strategy: Literal["fedavgm"]
    server_learning_rate: Rate = 1.0
    """Server step size, above 0."""
    server_momentum: Momentum = 0.9
    """Server momentum in [0, 1)."""


class FedAdagradServer(ServerBase):
    """FedAdagrad: server steps scaled by all past updates (Reddi et al. 2021)."""

    strategy: Literal["fedadagrad"]
    eta: Rate = 0.1
    """Server learning rate, above 0."""
    tau: Annotated[float, Field(ge=1e-12, le=1000)] = 1e-3
    """Degree of adaptability, above 0."""


class FedAdamServer(FedAdagradServer):
    """FedAdam: server steps scaled by a moving average of updates (Reddi et al. 2021)."""

    strategy: Literal["fedadam"]  # type: ignore[assignment]
    beta_1: Momentum = 0.9
    """First moment in [0, 1)."""
    beta_2: Momentum = 0.99
    """Second moment in [0, 1)."""


class FedYogiServer(FedAdamServer):
    """FedYogi: like FedAdam, with a scale that changes more slowly (Reddi et al. 2021)."""

    strategy: Literal["fedyogi"]  # type: ignore[assignment]


class FedDFDistillation(DistillationSettings):
    """How FedDF distils a round's models into their average."""

    ensemble: Literal["mean-logits", "mean-probabilities", "confidence", "validated"] = "mean-logits"
    """How the models' outputs become one target."""
    temperature: Temperature = 1.0
    """Temperature T of the distillation term, above 0."""
    weight: Share = 1.0
    """Weight w of the distillation term; 1 - w goes to cross entropy. Below 1 only with ``labels``."""
    epochs: Passes = 5
    """Passes over the transfer set."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """torch.optim optimiser; its state starts afresh each time."""
    lr: Rate = 0.001
    """Learning rate, above 0."""


class FedDFServer(ServerBase):
    """FedAvg, whose average is distilled from the round's models on the transfer set (Lin et al. 2020)."""

    strategy: Literal["feddf"]
    when: Literal["every", "first"] = "every"
    """Distil after every round, or after the first only."""
    distillation: FedDFDistillation = FedDFDistillation()
    """How."""


class DigestSettings(OptimiserSettings):
    """How a consensus is distilled into a model on the public examples."""

    batch_size: PositiveInt = 32
    """Examples a step."""


class LogitsServer(ServerBase):
    """Participants exchange logits on the transfer set in every round, and keep their models."""

    images: PositiveInt | None = None
    """Public examples of a round, drawn anew each time. Default: the whole transfer set."""
    models: ModelSettings | Annotated[tuple[ModelSettings, ...], Field(min_length=1)] | None = None
    """The participants' architecture; a list is dealt to participants in turn. Default: the federated
    model."""
    digest: DigestSettings = DigestSettings()
    """How participants distil the consensus of the round before."""
    distillation: DigestSettings = DigestSettings()
    """How the server distils it into the model that is evaluated."""


class FedMDServer(LogitsServer):
    """The mean of the logits is the consensus (Li and Wang 2019)."""

    strategy: Literal["fedmd"]


class DSFLServer(LogitsServer):
    """The mean of the probabilities, with its entropy reduced, is the consensus (Itahara et al. 2021)."""

    strategy: Literal["ds_fl"]
    temperature: Temperature = 0.1
    """Temperature T of the entropy reduction, above 0; it divides probabilities."""


class FedMedianServer(ServerBase):
    """Coordinate-wise median (Yin et al. 2018)."""

    strategy: Literal["fedmedian"]


class FedTrimmedAvgServer(ServerBase):
    """Coordinate-wise trimmed mean (Yin et al. 2018)."""

    strategy: Literal["fedtrimmedavg"]
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share cut off at each end, in [0, 0.5)."""


class KrumServer(ServerBase):
    """Krum (Blanchard et al. 2017)."""

    strategy: Literal["krum"]
    num_malicious_nodes: Annotated[int, Field(ge=0, le=10**9)] = 0
    """How many participants may lie: fewer than those sampled less 2."""


ServerSettings = Annotated[
    FedAvgServer
    | FedProxServer
    | FedAvgMServer
    | FedAdagradServer
    | FedAdamServer
    | FedYogiServer
    | FedDFServer
    | FedMDServer
    | DSFLServer
    | FedMedianServer
    | FedTrimmedAvgServer
    | KrumServer,
    Field(discriminator="strategy"),
]


class PlateauSettings(Settings):
    """When a curve counts as flat."""

    rounds: PositiveInt = 10
    """Flat when the best accuracy did not rise for this many rounds..."""
    min_delta: Annotated[float, Field(ge=0, lt=1)] = 0.002
    """...by more than this accuracy in [0, 1)."""
    stop: bool = False
    """Stop an arm there. A baseline that sets relative targets never stops early."""


class RoundSettings(Settings):
    """How long an arm runs and how its curve is read."""

    max: Annotated[int, Field(ge=0, le=10**6)] = 40
    """Federated rounds at most; 0 evaluates the start only."""
    evaluate_on: Literal["validation"] = "validation"
    """The split that targets and stops use. The test split is reported beside it, never used."""
    rule: Literal["sustained", "first"] = "sustained"
    """``sustained``: the first round from which the mean of three evaluations reaches the target (never,
    with ``max`` below 2); ``first``: the first evaluation that does."""
    stop_at_target: bool = True
    """Stop an arm when it has reached every target. A baseline that sets relative targets never stops
    early."""
    plateau: PlateauSettings = PlateauSettings()
    """When a curve counts as flat."""
