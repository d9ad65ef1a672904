"""Arms and experiments: the sections put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field

from kdfed.config.document import dump
from kdfed.config.merging import merge
from kdfed.config.sections import (
    ConsolidationSettings,
    DataSettings,
    DirichletPartition,
    Distinct,
    FedAvgServer,
    LocalSettings,
    ModelSettings,
    PartitionSettings,
    PlainLocal,
    RoundSettings,
    ServerSettings,
    Settings,
    TeacherSettings,
    Text,
    VanillaConsolidation,
    kebab,
)

ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(model: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    """Validate as JSON: strict, so that no word becomes a number, while lists still become tuples.

    ``local`` without ``mode`` is plain, ``server`` without ``strategy`` is fedavg, ``consolidation`` without
    ``method`` is vanilla.
    """
    values = dict(values)
    defaults = {
        "local": {"mode": "plain"},
        "server": {"strategy": "fedavg"},
        "consolidation": {"method": "vanilla"},
    }
    for section, default in defaults.items():
        if isinstance(values.get(section), Mapping):
            values[section] = {**default, **values[section]}
    text = json.dumps(values, default=str)
    return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)


class ArmSettings(Settings):
    """The keys that an arm can replace."""

    start: str = Field(
        default="random",
        pattern=r"^(random|consolidated|averaged|file:.+)$",
        max_length=4096,
        validate_default=True,
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

    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Intra-op threads of every process that trains, distils, aggregates or evaluates. Part of the
    experiment: two threads give other bits than one."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?)$")
    """Where training runs: ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or ``auto`` (cuda when there is one)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the participants' training: ``bfloat16`` runs their layers in bfloat16 (autocast; quicker
    on GPUs), while weights, losses and everything on the server stay float32."""
    data: DataSettings = DataSettings()
    """Where the examples come from."""
    partition: PartitionSettings = DirichletPartition(kind="dirichlet", alpha=0.1)
    """Who holds what."""
    rounds: RoundSettings = RoundSettings()
    """How long an arm runs and how its curve is read."""


_SHARE = r"^(100(\.0+)?|[1-9][0-9]?(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)%-of-best$"

Target = Annotated[float, Field(gt=0, le=1)] | Annotated[str, Field(pattern=_SHARE, max_length=32)]


def _distinct_targets(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Refuse a target that stands twice, as ``90%-of-best`` and ``90.0%-of-best`` do."""
    values = {
        (target, False) if isinstance(target, float) else (float(target.partition("%")[0]), True)
        for target in targets
    }
    if len(values) != len(targets):
        raise ValueError("expected distinct targets; remove the repeated ones")
    return targets


class Experiment(Arm):
    """A whole experiment file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """Letters, digits, dot, hyphen, underscore. The default output folder is ``runs/<name>``."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1), Distinct] = (0,)
    """One run each. A seed varies partition, initial weights and sampling together."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1), AfterValidator(_distinct_targets)] = (
        "90%-of-best",
    )
    """Accuracies in (0, 1], or shares in (0, 100] % of the baseline's best, such as ``95%-of-best``."""
    baseline: Text | None = None
    """The arm that others are compared with. Default: the first."""
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """The arms by name (at most 64 letters, digits, hyphens, underscores); each replaces some keys of the
    experiment."""

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
        return validate(Arm, self._arm_values(name))

    def _arm_values(self, name: str) -> dict[str, Any]:
        shared = {key: value for key, value in self.model_dump(mode="json").items() if key in ARM_KEYS}
        return merge(shared, self.arms[name])

    def to_yaml(self) -> str:
        """Return the resolved experiment as YAML that reads back to an equal experiment."""
        return dump(self.model_dump(mode="json"))


ARM_KEYS = {kebab(name) for name in Arm.model_fields}
REPLACEABLE_KEYS = {kebab(name) for name in ArmSettings.model_fields}


def sampled_count(arm: Arm) -> int:
    """Return how many participants a round samples, at least one."""
    sampled = arm.server.sampled
    if sampled == "all":
        return arm.partition.participants
    if isinstance(sampled, int):
        return sampled
    return max(1, round(sampled * arm.partition.participants))
