"""The experiment, as frozen pydantic models, and the reader that reports every mistake at once.

An experiment is a YAML file. Keys are kebab-case, unknown keys are mistakes, and an option that would
have no effect is a mistake too. An arm is the experiment with some keys replaced; only keys of
:class:`ArmSettings` can be replaced, because arms share data, participants, seeds and targets.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kdfed.errors import ConfigError, Mistake


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Settings(BaseModel):
    """Base of every part of an experiment: frozen, kebab-case, unknown keys forbidden."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_kebab,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


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
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split. It is not the run's seed, so the test set stays the same for every run."""


class ColumnSettings(Settings):
    """Which columns of a table (``parquet:``, ``hf:``) hold what."""

    inputs: str | tuple[str, ...] | None = None
    """The image column, or the feature columns. Default: the only image column, else every numeric
    column that is not the label."""
    label: str | None = None
    """The label column. Default: the only column of Hugging Face type ``ClassLabel``, else ``label``."""


class NormaliseSettings(Settings):
    """Fixed normalisation ``(x - mean) / std``, per channel or per feature."""

    mean: tuple[float, ...]
    """One number per channel (images, after scaling to [0, 1]) or per feature."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """One number above 0 per channel or feature."""


class DataSettings(Settings):
    """Where the examples come from.

    Class indices, shape and normalisation are fixed by these keys (or by what the source declares), never by
    the files that happen to be present.
    """

    source: str = "mnist5k"
    """``mnist5k``, ``digits``, ``parquet:PATH``, ``hf:NAME``, ``torchvision:NAME``, ``folder:PATH``,
    ``synthetic:KEY=VALUE,...`` or ``package.module:name``."""
    splits: SplitSettings = SplitSettings()
    """The held-out shares."""
    limit: PositiveInt | None = None
    """Use only this many examples, drawn with the split's seed. Default: all."""
    columns: ColumnSettings | None = None
    """For ``parquet:`` and ``hf:`` only. Default: found by the rules of each key."""
    classes: PositiveInt | tuple[str, ...] | None = None
    """Number or names of the classes, in label order. Required where the source does not declare them."""
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
    alpha: Annotated[float, Field(gt=0)]
    """Concentration of the sizes, above 0; smaller is more skewed."""


class LabelOverlapPartition(PartitionBase):
    """Label skew with overlap: a participant draws from its own group of classes and, in part, from all."""

    kind: Literal["label-overlap"]
    classes: PositiveInt = 2
    """Classes in a participant's own group. With fewer participants than groups, what belongs to the
    groups of nobody is left out."""
    overlap: Annotated[float, Field(ge=0, le=1)]
    """Share of a participant's examples drawn from all classes alike: 0 is disjoint groups, 1 is uniform."""


class KClassesPartition(PartitionBase):
    """Pathological: every participant holds exactly k classes."""

    kind: Literal["k-classes"]
    classes: PositiveInt
    """k. Where participants x k does not exceed the number of classes, participants are disjoint, and the
    examples of classes that nobody holds are left out."""


class DirichletPartition(PartitionBase):
    """Label skew: each class is dealt to participants by a draw from a symmetric Dirichlet distribution."""

    kind: Literal["dirichlet"]
    alpha: Annotated[float, Field(gt=0)]
    """Concentration, above 0; smaller is more skewed."""


PartitionSettings = Annotated[
    UniformPartition | QuantitySkewPartition | LabelOverlapPartition | KClassesPartition | DirichletPartition,
    Field(discriminator="kind"),
]


# ----------------------------------------------------------------------------- models and training


class ModelSettings(Settings):
    """A model, fitted to the data's input shape and number of classes."""

    name: str = "cnn"
    """``cnn``, ``mlp``, ``resnet8``, ``resnet18``, ``torchvision:NAME`` or ``package.module:name``."""
    options: dict[str, bool | int | float | str | tuple[int, ...]] = {}
    """Keyword arguments of the model, e.g. ``{width: 32}``; checked against its signature."""


class OptimiserSettings(Settings):
    """Mini-batch training."""

    epochs: PositiveInt = 1
    """Passes over the examples."""
    batch_size: PositiveInt = 10
    """Examples a step; the last batch of an epoch may be smaller."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """torch.optim optimiser; its state starts afresh each time."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum in [0, 1), for sgd only; 0 turns it off."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty (decoupled for adamw); 0 turns it off."""


class PlainLocal(OptimiserSettings):
    """Local training by cross entropy."""

    mode: Literal["plain"] = "plain"


class ProximalLocal(OptimiserSettings):
    """Cross entropy plus ``mu / 2 * ||w - w_received||^2`` (FedProx, Li et al. 2020, equation 2)."""

    mode: Literal["proximal"]
    mu: Annotated[float, Field(ge=0)]
    """Weight of the proximal term; 0 is plain training."""


class KDLocal(OptimiserSettings):
    """Cross entropy plus distillation from the received model, which stays frozen."""

    mode: Literal["kd"]
    temperature: Annotated[float, Field(gt=0)] = 3.0
    """Temperature T, above 0."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight w of the distillation term in [0, 1]; 0 is plain training."""


LocalSettings = Annotated[PlainLocal | ProximalLocal | KDLocal, Field(discriminator="mode")]


class LabelCountSettings(Settings):
    """Whether teachers tell how many examples of each class they were trained on."""

    send: bool = False
    """Send the counts with the teacher's reply."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Add Laplace noise of scale 1 / epsilon to each count (one example changes one count by one, so the
    counts are epsilon-differentially private). Default: exact counts."""


class TeacherSettings(OptimiserSettings):
    """The participants' own training before the first round."""

    epochs: PositiveInt = 10
    """Passes over the participant's examples."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum in [0, 1), for sgd only; 0 turns it off."""
    count: PositiveInt | Literal["all"] = "all"
    """How many participants train a teacher, drawn with the run's seed."""
    init: Literal["common", "own"] = "common"
    """Start from the same initial weights, or each from its own."""
    upload: Literal["weights", "logits"] = "weights"
    """What a teacher uploads: its weights, or only its logits on the transfer set, as float16."""
    model: ModelSettings | tuple[ModelSettings, ...] | None = None
    """The teachers' architecture; a list is dealt to participants in turn. Default: the federated model."""
    label_counts: LabelCountSettings = LabelCountSettings()
    """Label counts, needed by the ensemble ``label-counts``."""


Ensemble = Literal["mean-logits", "mean-probabilities", "label-counts", "confidence", "validated"]
Augmentation = Literal["flip", "crop"]


class VanillaConsolidation(OptimiserSettings):
    """Vanilla KD (Hinton et al. 2015) from the ensemble of teachers into one student."""

    method: Literal["vanilla"] = "vanilla"
    """The KD method."""
    ensemble: Ensemble = "mean-probabilities"
    """How the teachers' outputs become one target."""
    temperature: Annotated[float, Field(gt=0)] = 3.0
    """Temperature T of the distillation term, above 0."""
    labels: bool = False
    """Use the labels of the transfer set."""
    weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight w of the distillation term; 1 - w goes to cross entropy. Below 1 only with ``labels``."""
    epochs: PositiveInt = 60
    """Passes over the transfer set."""
    batch_size: PositiveInt = 64
    """Examples a step."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum in [0, 1), for sgd only; 0 turns it off."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the epochs; ``cosine`` decays to 0."""
    augmentation: tuple[Augmentation, ...] = ()
    """Random changes of the transfer images while distilling: ``flip`` (left-right), ``crop`` (pad by an
    eighth, crop back)."""
    views: PositiveInt | None = None
    """Changed copies of each transfer image, drawn once: teachers answer for each once, and an epoch passes
    over all. Default: fresh changes in every step, each of which every teacher answers. Only with
    ``augmentation``."""
    select: Literal["last", "best"] = "last"
    """Keep the last student, or the best of all epochs on the validation split."""
    init: Literal["random", "common", "averaged"] = "common"
    """The student starts from a draw of its own, from the common initial weights (those of a cold
    start), or from the average of the teachers' weights."""


ConsolidationSettings = VanillaConsolidation


# ----------------------------------------------------------------------------- server and rounds


class DeadlineSettings(Settings):
    """Seconds until a missing reply counts as late."""

    hello: Annotated[float, Field(gt=0)] = 120.0
    """For the first contact."""
    teachers: Annotated[float, Field(gt=0)] = 3600.0
    """For the teacher exchange."""
    train: Annotated[float, Field(gt=0)] = 3600.0
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
    server_learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """Server step size, above 0."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Server momentum in [0, 1)."""


class FedAdagradServer(ServerBase):
    """FedAdagrad: server steps scaled by all past updates (Reddi et al. 2021)."""

    strategy: Literal["fedadagrad"]
    eta: Annotated[float, Field(gt=0)] = 0.1
    """Server learning rate, above 0."""
    tau: Annotated[float, Field(gt=0)] = 1e-3
    """Degree of adaptability, above 0."""


class FedAdamServer(FedAdagradServer):
    """FedAdam: server steps scaled by a moving average of updates (Reddi et al. 2021)."""

    strategy: Literal["fedadam"]  # type: ignore[assignment]
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """First moment in [0, 1)."""
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Second moment in [0, 1)."""


class FedYogiServer(FedAdamServer):
    """FedYogi: like FedAdam, with a scale that changes more slowly (Reddi et al. 2021)."""

    strategy: Literal["fedyogi"]  # type: ignore[assignment]


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
    num_malicious_nodes: Annotated[int, Field(ge=0)] = 0
    """How many participants may lie."""


ServerSettings = Annotated[
    FedAvgServer
    | FedProxServer
    | FedAvgMServer
    | FedAdagradServer
    | FedAdamServer
    | FedYogiServer
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

    max: Annotated[int, Field(ge=0)] = 40
    """Federated rounds at most; 0 evaluates the start only."""
    evaluate_on: Literal["validation"] = "validation"
    """The split that targets and stops use. The test split is reported beside it, never used."""
    rule: Literal["sustained", "first"] = "sustained"
    """``sustained``: the first round from which the mean of three evaluations reaches the target;
    ``first``: the first evaluation that does."""
    stop_at_target: bool = True
    """Stop an arm when it has reached every target. A baseline that sets relative targets never stops
    early."""
    plateau: PlateauSettings = PlateauSettings()
    """When a curve counts as flat."""


# ----------------------------------------------------------------------------- arms and experiment


class ArmSettings(Settings):
    """The keys that an arm can replace."""

    start: str = Field(
        default="random", pattern=r"^(random|consolidated|averaged|file:.+)$", validate_default=True
    )
    """``random``, ``consolidated`` (teachers distilled into one student), ``averaged`` (teachers' weights
    averaged) or ``file:PATH`` (a .safetensors file)."""
    model: ModelSettings = ModelSettings()
    """The federated model, also the student."""
    local: LocalSettings = PlainLocal()
    """Local training in a federated round."""
    teachers: TeacherSettings = TeacherSettings()
    """Local training before the first round; only arms that start from teachers use it."""
    consolidation: ConsolidationSettings = VanillaConsolidation()
    """Teachers into one student; only arms with ``start: consolidated`` use it."""
    server: ServerSettings = FedAvgServer()
    """Strategy, sampling, cohorts, deadlines."""


class Arm(ArmSettings):
    """One way of running an experiment: everything that one arm needs, all keys resolved."""

    threads: PositiveInt = 1
    """Intra-op threads of every process that trains, distils, aggregates or evaluates. Part of the
    experiment: two threads give other bits than one."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where training runs: ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or ``auto`` (cuda when there is one)."""
    data: DataSettings = DataSettings()
    """Where the examples come from."""
    partition: PartitionSettings = DirichletPartition(kind="dirichlet", alpha=0.1)
    """Who holds what."""
    rounds: RoundSettings = RoundSettings()
    """How long an arm runs and how its curve is read."""


Target = (
    Annotated[float, Field(gt=0, le=1)] | Annotated[str, Field(pattern=r"^(100|[1-9]?\d)(\.\d+)?%-of-best$")]
)


class Experiment(Arm):
    """A whole experiment file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """Letters, digits, dot, hyphen, underscore. The default output folder is ``runs/<name>``."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    """One run each. A seed varies partition, initial weights and sampling together."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("90%-of-best",)
    """Accuracies in (0, 1], or shares of the baseline's best such as ``95%-of-best``."""
    baseline: str | None = None
    """The arm that others are compared with. Default: the first."""
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """The arms by name; each replaces some keys of the experiment."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("expected distinct seeds; remove the repeated ones")
        return seeds

    @property
    def baseline_arm(self) -> str:
        """Name of the arm that others are compared with."""
        return self.baseline if self.baseline is not None else next(iter(self.arms))

    @property
    def arm_order(self) -> tuple[str, ...]:
        """Names of the arms in the order they run: the baseline first, for relative targets."""
        rest = (name for name in self.arms if name != self.baseline_arm)
        return (self.baseline_arm, *rest)

    @property
    def has_relative_targets(self) -> bool:
        """Whether a target is a share of the baseline's best accuracy."""
        return any(isinstance(target, str) for target in self.targets)

    def arm(self, name: str) -> Arm:
        """Return one arm with every key resolved.

        Raises
        ------
        KeyError
            If there is no such arm.
        """
        return _validate(Arm, self._arm_values(name))

    def _arm_values(self, name: str) -> dict[str, Any]:
        shared = {key: value for key, value in self.model_dump(mode="json").items() if key in _ARM_KEYS}
        return merge(shared, self.arms[name])

    def to_yaml(self) -> str:
        """Return the resolved experiment as YAML that reads back to an equal experiment."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_ARM_KEYS = {_kebab(name) for name in Arm.model_fields}
_REPLACEABLE_KEYS = {_kebab(name) for name in ArmSettings.model_fields}
_DISCRIMINATORS = ("kind", "mode", "strategy", "method")

# What consolidation can be asked for: (method, upload, labels, augmentation) -> None when it is valid, else
# why not. A test walks every entry.
COMBINATIONS: dict[tuple[str, str, bool, bool], str | None] = {
    ("vanilla", "weights", False, False): None,
    ("vanilla", "weights", False, True): None,
    ("vanilla", "weights", True, False): None,
    ("vanilla", "weights", True, True): None,
    ("vanilla", "logits", False, False): None,
    ("vanilla", "logits", True, False): None,
    ("vanilla", "logits", False, True): "uploaded logits belong to the images as they are",
    ("vanilla", "logits", True, True): "uploaded logits belong to the images as they are",
}


# ----------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two repairs: ``1e-3`` is a number, and a repeated key is a mistake."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?)$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in result:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice; remove one", key_node.start_mark
            )
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace some keys of nested mappings.

    Dotted keys reach into nested mappings. Where ``kind``, ``mode``, ``strategy``, ``method`` or a model's
    ``name`` changes, the other keys of that mapping that belonged to the old one are dropped.

    Parameters
    ----------
    base, changes
        Mappings as read from YAML; neither is changed.

    Returns
    -------
    dict
        A new mapping.
    """
    result = dict(base)
    for key, value in _undotted(changes).items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            for tag in (*_DISCRIMINATORS, *(("name",) if key == "model" else ())):
                if tag in value and tag in old and value[tag] != old[tag]:
                    known = _keys_of_variant(key, tag, value[tag])
                    old = {k: v for k, v in old.items() if k in known}
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _undotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in changes.items():
        head, dot, tail = str(key).partition(".")
        if dot:
            nested = result.get(head)
            result[head] = merge(nested if isinstance(nested, Mapping) else {}, {tail: value})
        elif isinstance(value, Mapping) and isinstance(result.get(head), Mapping):
            result[head] = merge(result[head], value)
        else:
            result[head] = value
    return result


def _variants(section: str) -> dict[str, type[Settings]]:
    """Return the variants of a section by the value of its discriminator."""
    unions = {"partition": PartitionSettings, "local": LocalSettings, "server": ServerSettings}
    union = get_args(unions[section])[0] if section in unions else VanillaConsolidation
    found: dict[str, type[Settings]] = {}
    for variant in get_args(union) or (union,):
        for tag in _DISCRIMINATORS:
            if tag in variant.model_fields:
                found[get_args(variant.model_fields[tag].annotation)[0]] = variant
    return found


def variants(section: str) -> dict[str, type[Settings]]:
    """Return the variants of ``partition``, ``local``, ``server`` or ``consolidation`` by name."""
    return _variants(section)


def _keys_of_variant(section: str, tag: str, value: object) -> set[str]:
    if section not in ("partition", "local", "server", "consolidation"):
        return set()
    variant = _variants(section).get(str(value))
    return {_kebab(name) for name in variant.model_fields} if variant else {tag}


ModelT = TypeVar("ModelT", bound=BaseModel)


def _validate(model: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    """Validate as JSON: strict, so that no word becomes a number, while lists still become tuples."""
    text = json.dumps(values, default=str)
    return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` assignments; keys are dotted, values are YAML.

    Raises
    ------
    ConfigError
        If an assignment has no ``=``, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    mistakes = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            mistakes.append(Mistake("", f"expected key=value, got {assignment!r}"))
            continue
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            mistakes.append(Mistake(key, f"expected a YAML value, got {text!r} ({_one_line(error)})"))
            continue
        values = merge(values, {key.strip(): value})
    if mistakes:
        raise ConfigError("--set", mistakes)
    return values


def split_set(text: str) -> list[str]:
    """Split the run-config key ``set`` at white space, except inside quotes."""
    return re.findall(r"(?:[^\s\"']|\"[^\"]*\"|'[^']*')+", text)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(str(path), [Mistake("", f"expected a readable YAML file: {reason}")]) from error
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [Mistake("", f"expected YAML: {_one_line(error)}")]) from error
    if not isinstance(values, dict):
        got = type(values).__name__
        raise ConfigError(str(path), [Mistake("", f"expected a mapping of keys, got {got}")])
    return values


def load_experiment(
    path: str | Path, assignments: Sequence[str] = (), seeds: Sequence[str | int] | None = None
) -> Experiment:
    """Read an experiment file, replace keys, check everything.

    Parameters
    ----------
    path
        The YAML file.
    assignments
        ``key=value`` strings as given to ``--set``.
    seeds
        Replaces ``seeds``; words are reported like any other mistake.

    Returns
    -------
    Experiment
        Relative paths in it are resolved against the current directory.

    Raises
    ------
    ConfigError
        Every mistake at once: key, what was expected, what arrived, and a near match.
    """
    values = merge(read_mapping(Path(path)), parse_set(assignments))
    if seeds is not None:
        values["seeds"] = [_number(seed) for seed in seeds]
    return build_experiment(values, str(path))


def _number(seed: str | int) -> str | int:
    return int(seed) if isinstance(seed, str) and re.fullmatch(r"-?\d+", seed) else seed


def build_experiment(values: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """Check an experiment that was read already; see :func:`load_experiment`."""
    experiment, mistakes = _check(_resolve_paths(merge({}, values)))
    if mistakes or experiment is None:
        raise ConfigError(source, mistakes)
    return experiment


def _check(values: dict[str, Any]) -> tuple[Experiment | None, list[Mistake]]:
    """Collect every mistake; those that only show once others are gone included."""
    mistakes: list[Mistake] = []
    experiment: Experiment | None = None
    pruned = json.loads(json.dumps(values, default=str))
    for _ in range(10):
        try:
            experiment = _validate(Experiment, pruned)
            break
        except ValidationError as error:
            problems = error.errors()
            known = {mistake.key for mistake in mistakes}
            mistakes += [m for m in _describe_all(problems, pruned) if m.key not in known]
            for problem in problems:
                _remove(pruned, problem)
    if experiment is None:
        return None, mistakes
    return experiment, mistakes + _check_arms(experiment)


def _check_arms(experiment: Experiment) -> list[Mistake]:
    mistakes: list[Mistake] = []
    if experiment.baseline is not None and experiment.baseline not in experiment.arms:
        hint = _near(experiment.baseline, experiment.arms)
        mistakes.append(
            Mistake("baseline", f"expected the name of an arm, got {experiment.baseline!r}{hint}")
        )
    base = _validate(Arm, {k: v for k, v in experiment.model_dump(mode="json").items() if k in _ARM_KEYS})
    base_mistakes = cross_checks(base)
    for name, changes in experiment.arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            mistakes.append(
                Mistake(f"arms.{name}", "expected a name of letters, digits, dot, hyphen and underscore")
            )
        fixed = {key for key in _undotted(changes) if key not in _REPLACEABLE_KEYS}
        for key in sorted(fixed):
            if key in _ARM_KEYS or key in {_kebab(field) for field in Experiment.model_fields}:
                why = "arms share it: move it to the experiment"
            else:
                why = f"unknown key{_near(key, _REPLACEABLE_KEYS)}"
            mistakes.append(Mistake(f"arms.{name}.{key}", why))
        kept = {key: value for key, value in _undotted(changes).items() if key not in fixed}
        values = merge(base.model_dump(mode="json"), kept)
        try:
            arm = _validate(Arm, values)
        except ValidationError as error:
            for mistake in _describe_all(error.errors(), values):
                mistakes.append(Mistake(f"arms.{name}.{mistake.key}", mistake.message))
            continue
        for mistake in cross_checks(arm):
            key = mistake.key if mistake in base_mistakes else f"arms.{name}.{mistake.key}"
            if Mistake(key, mistake.message) not in mistakes:
                mistakes.append(Mistake(key, mistake.message))
    return mistakes


def cross_checks(arm: Arm) -> list[Mistake]:
    """Return the mistakes that lie in how keys of one arm go together.

    Parameters
    ----------
    arm
        An arm whose single keys are valid. Sections that its start does not use are not checked.
    """
    from kdfed.models import check_model  # imports torch: not needed to print help

    mistakes: list[Mistake] = []

    def wrong(key: str, message: str) -> None:
        mistakes.append(Mistake(key, message))

    models: list[tuple[str, ModelSettings]] = [("model", arm.model)]
    trained: list[tuple[str, OptimiserSettings]] = [("local", arm.local)]
    if arm.start in ("consolidated", "averaged"):
        trained.append(("teachers", arm.teachers))
        teacher = arm.teachers.model
        several = teacher if isinstance(teacher, tuple) else (teacher,) if teacher is not None else ()
        models += [("teachers.model", model) for model in several]
    if arm.start == "consolidated":
        trained.append(("consolidation", arm.consolidation))
    for section, model in models:
        problem = check_model(model)
        if problem is not None:
            wrong(section, problem)
    for section, settings in trained:
        if settings.optimizer != "sgd" and settings.momentum != 0:
            wrong(
                f"{section}.momentum",
                f"expected 0 with optimizer {settings.optimizer!r}, which has no such option, got "
                f"{settings.momentum}; use optimizer: sgd or remove it",
            )
    if arm.server.strategy == "fedprox" and arm.local.mode != "proximal":
        wrong("local.mode", f"expected 'proximal' with strategy 'fedprox', got {arm.local.mode!r}")
    total = sum(
        share
        for share in (arm.data.splits.test, arm.data.splits.validation, arm.data.splits.transfer)
        if not isinstance(share, str)
    )
    if total >= 1:
        wrong("data.splits", f"expected shares that leave examples for participants, got {total:g} of them")
    if arm.data.columns is not None and not arm.data.source.startswith(("parquet:", "hf:")):
        wrong("data.columns", f"goes with parquet: and hf: sources, got {arm.data.source!r}; remove it")
    if isinstance(arm.data.classes, tuple) and len(set(arm.data.classes)) != len(arm.data.classes):
        wrong("data.classes", "expected distinct names; remove the repeated ones")
    normalise = arm.data.normalise
    if isinstance(normalise, NormaliseSettings) and len(normalise.mean) != len(normalise.std):
        wrong(
            "data.normalise",
            f"expected as many std as mean, got {len(normalise.mean)} mean and {len(normalise.std)} std",
        )
    participants = arm.partition.participants
    sampled = arm.server.sampled
    if isinstance(sampled, int) and sampled > participants:
        wrong("server.sampled", f"expected at most the {participants} participants, got {sampled}")
    drawn = sampled_count(arm)
    if arm.server.minimum > drawn:
        wrong(
            "server.minimum", f"expected at most the {drawn} participants sampled, got {arm.server.minimum}"
        )
    if arm.start in ("consolidated", "averaged"):
        mistakes += _check_teachers(arm)
    return mistakes


def _check_teachers(arm: Arm) -> list[Mistake]:
    mistakes: list[Mistake] = []

    def wrong(key: str, message: str) -> None:
        mistakes.append(Mistake(key, message))

    teachers, consolidation = arm.teachers, arm.consolidation
    if isinstance(teachers.count, int) and teachers.count > arm.partition.participants:
        wrong(
            "teachers.count",
            f"expected at most the {arm.partition.participants} participants, got {teachers.count}",
        )
    if teachers.label_counts.epsilon is not None and not teachers.label_counts.send:
        wrong("teachers.label-counts.epsilon", "has no effect unless send is true; set it or remove epsilon")
    averaged = arm.start == "averaged" or consolidation.init == "averaged"
    where = "start" if arm.start == "averaged" else "consolidation.init"
    if averaged and teachers.upload != "weights":
        wrong(where, f"'averaged' needs teachers.upload 'weights', got {teachers.upload!r}")
    if averaged and teachers.model is not None and teachers.model != arm.model:
        wrong(where, "'averaged' needs teachers of the federated model's architecture; remove teachers.model")
    if arm.start == "averaged":
        return mistakes
    choice = (
        consolidation.method,
        teachers.upload,
        consolidation.labels,
        bool(consolidation.augmentation),
    )
    refused = COMBINATIONS[choice]
    if refused is not None:
        wrong(
            "consolidation",
            f"method {choice[0]!r} with upload {choice[1]!r}, labels {choice[2]} and augmentation "
            f"{list(consolidation.augmentation)} is not possible: {refused}",
        )
    if consolidation.weight < 1 and not consolidation.labels:
        wrong(
            "consolidation.weight",
            f"expected 1 on a transfer set without labels, got {consolidation.weight:g}; "
            "set labels: true or remove it",
        )
    if consolidation.labels and consolidation.weight == 1:
        wrong(
            "consolidation.labels",
            "has no effect with weight 1; lower consolidation.weight or set labels: false",
        )
    if consolidation.views is not None and not consolidation.augmentation:
        wrong("consolidation.views", "has no effect without augmentation; name one or remove it")
    if consolidation.ensemble == "label-counts" and not teachers.label_counts.send:
        wrong("consolidation.ensemble", "'label-counts' needs teachers.label-counts.send: true")
    if consolidation.ensemble == "validated" and teachers.upload == "logits":
        wrong(
            "consolidation.ensemble",
            "'validated' runs teachers on the validation split and needs teachers.upload 'weights'",
        )
    return mistakes


def sampled_count(arm: Arm) -> int:
    """Return how many participants a round samples, at least one."""
    sampled = arm.server.sampled
    if sampled == "all":
        return arm.partition.participants
    if isinstance(sampled, int):
        return sampled
    return max(1, round(sampled * arm.partition.participants))


# ----------------------------------------------------------------------------- messages


# What a source reads from a path; hf: takes names too, so that a path there starts with a dot, a tilde or /.
_SOURCE_PATH = r"(parquet:|folder:|hf:(?=[.~])|torchvision:\w+@)(.+)"


def _resolve_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute, so that they mean the same in every process."""

    def absolute(text: Any, pattern: str) -> Any:
        match = re.fullmatch(pattern, text) if isinstance(text, str) else None
        return match[1] + str(Path(match[2]).expanduser().absolute()) if match else text

    data = values.get("data")
    if isinstance(data, dict) and "source" in data:
        values["data"] = {**data, "source": absolute(data["source"], _SOURCE_PATH)}
    arms = values.get("arms")
    for holder in [values, *(arms.values() if isinstance(arms, dict) else [])]:
        if isinstance(holder, dict) and "start" in holder:
            holder["start"] = absolute(holder["start"], "(file:)(.+)")
    return values


def _near(word: object, known: Iterable[str]) -> str:
    names = sorted(str(name) for name in known)
    match = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def _raw_path(location: Sequence[int | str], values: Any) -> list[int | str]:
    """Return the part of a pydantic location that exists in the file: no union tags, no types."""
    path: list[int | str] = []
    holder = values
    for part in location:
        inside = isinstance(holder, dict) and part in holder
        if inside or (isinstance(holder, list) and isinstance(part, int) and part < len(holder)):
            path.append(part)
            holder = holder[part]
    return path


def _remove(values: dict[str, Any], problem: Mapping[str, Any]) -> None:
    """Remove what is wrong, so that the mistakes it hides show."""
    location = list(problem["loc"])
    if problem["type"] == "missing" and len(location) == 1:
        values[location[0]] = {"arm": {}} if location[0] == "arms" else "unnamed"
        return
    path = _raw_path(location, values)
    while path and isinstance(path[-1], int):
        path.pop()
    if not path:
        return
    holder: Any = values
    for part in path[:-1]:
        holder = holder[part]
    holder.pop(path[-1], None)


def _models_at(location: Sequence[int | str]) -> list[type[BaseModel]]:
    """Return the settings classes that the last key of a location can belong to."""
    models: list[type[BaseModel]] = [Experiment]
    for part in location[:-1]:
        chosen = [model for model in models if str(part) in map(str, _tags(model))]
        if chosen:
            models = chosen
            continue
        fields = [
            field for model in models for name, field in model.model_fields.items() if _kebab(name) == part
        ]
        if fields:
            models = [model for field in fields for model in _models_in(field.annotation)]
    return models


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    for tag in _DISCRIMINATORS:
        if tag in model.model_fields:
            return get_args(model.model_fields[tag].annotation)
    return ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a word",
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "tuple_type": "a list",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
}


def _describe_all(problems: Sequence[Any], values: Any) -> list[Mistake]:
    """Put pydantic's problems into words; the members of a union make one mistake together."""
    grouped: dict[tuple[str, str], list[Any]] = {}
    for problem in problems:
        path = _raw_path(problem["loc"], values)
        if problem["type"] == "missing":
            path.append(problem["loc"][-1])
        if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path.append(problem["ctx"]["discriminator"].strip("'"))
        kind = "value" if problem["type"] in {*_EXPECTED, "string_pattern_mismatch"} else problem["type"]
        grouped.setdefault((".".join(map(str, path)), kind), []).append(problem)
    return [Mistake(key, _describe(group)) for (key, _), group in grouped.items()]


def _describe(group: Sequence[Any]) -> str:
    problem = group[0]
    kind, location, got = problem["type"], list(problem["loc"]), problem.get("input")
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = {_kebab(name) for model in _models_at(location) for name in model.model_fields}
        return f"unknown key{_near(location[-1], known)}"
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", context["expected_tags"])
        return f"expected one of {', '.join(tags)}, got {context['tag']!r}{_near(context['tag'], tags)}"
    if kind == "union_tag_not_found":
        return f"is required: expected one of {', '.join(_tags_at(location))}"
    if kind == "missing":
        return f"is required{_meaning(location)}"
    if kind == "value_error":
        return f"{context['error']}, got {got!r}"
    if "string_pattern_mismatch" in {p["type"] for p in group}:
        return f"got {got!r}, which is not valid{_meaning(location)}"
    if kind in _EXPECTED:
        fitting = [p for p in group if not p["type"].endswith("_type")] or group
        wanted = list(dict.fromkeys(_EXPECTED[p["type"]].format(**p.get("ctx", {})) for p in fitting))
        hint = ""
        if isinstance(got, str):
            choices = [word for text in wanted for word in re.findall(r"'([^']*)'", text)]
            close = difflib.get_close_matches(got, choices, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"expected {' or '.join(wanted)}, got {got!r}{hint}"
    return f"{problem['msg']}, got {got!r}"


def _tags_at(location: Sequence[int | str]) -> list[str]:
    return [str(tag) for model in _models_at([*location, ""]) for tag in _tags(model)]


def _meaning(location: Sequence[int | str]) -> str:
    """Return the sentence under the field that a location names."""
    for length in range(len(location), 0, -1):
        for model in _models_at(location[:length]):
            for name, field in model.model_fields.items():
                if _kebab(name) == location[length - 1] and field.description:
                    return f". Expected: {' '.join(field.description.split())}"
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
