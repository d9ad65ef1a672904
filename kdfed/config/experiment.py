"""Arms and experiments: the sections put together, and the schema that families make of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)

from kdfed.choosing import gathered
from kdfed.closed_form import ClosedFormSettings
from kdfed.config.document import dump
from kdfed.config.merging import merge
from kdfed.config.tuning import TuningSettings
from kdfed.convergence import CONVERGENCE
from kdfed.distill import KDMethod, VanillaConsolidation
from kdfed.family import Families
from kdfed.local import LocalMode, PlainLocal
from kdfed.partitions import DirichletPartition, PartitionBase
from kdfed.server import GivenStrategy, ServerBase
from kdfed.settings import (
    DataSettings,
    Distinct,
    ListenerSettings,
    ModelSettings,
    RoundSettings,
    ServerDataSettings,
    ServerFitSettings,
    Settings,
    TeacherSettings,
    Text,
    held_data,
    kebab,
)

ModelT = TypeVar("ModelT", bound=BaseModel)


CLOSED_FORM = "closed-form"
"""The section that an arm need not have."""

_OPTIONAL = ("closed_form", "server_data")


def validate(model: type[ModelT], values: Mapping[str, Any], families: Families) -> ModelT:
    """Validate as JSON: strict, so that no word becomes a number, while lists still become tuples.

    A section that does not say which thing it is about is about the family's default: ``local`` without
    ``mode`` is plain.
    """
    values = dict(values)
    for section, family in families.sections.items():
        if isinstance(values.get(section), Mapping):
            default = {family.tag: family.default} if family.default else {}
            given = {**default, **values[section]}
            kind = family.members.get(str(given.get(family.tag)))
            values[section] = given if kind is None else gathered(kind, given)
    if isinstance(values.get(CLOSED_FORM), Mapping):
        values[CLOSED_FORM] = gathered(families.opened(ClosedFormSettings), values[CLOSED_FORM])
    text = json.dumps(values, default=str)
    return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)


class ArmSettings(Settings):
    """The keys that an arm can replace."""

    start: str = Field(
        default="random",
        pattern=r"^(random|recipe|consolidated|averaged|server|file:.+)$",
        max_length=4096,
        validate_default=True,
    )
    """``random``, ``recipe`` (of an arm: what kdfed advises, see [The recipe](recipe.md)), ``consolidated``
    (teachers distilled into one student), ``averaged`` (teachers' weights averaged), ``server`` (trained on
    the server's own labels, no participant) or ``file:PATH`` (a .safetensors file)."""
    model: ModelSettings = ModelSettings()
    """The federated model, also the student."""
    local: LocalMode = PlainLocal()
    """Local training in a federated round."""
    teachers: TeacherSettings = TeacherSettings()
    """Local training before the first round; only arms that start from teachers use it."""
    consolidation: KDMethod = VanillaConsolidation()
    """Teachers into one student; only arms with ``start: consolidated`` use it."""
    server_fit: ServerFitSettings = ServerFitSettings()
    """A model of the server's own labels; only arms with ``start: server`` use it."""
    closed_form: ClosedFormSettings | None = None
    """A head that is solved for in one exchange, see [Closed-form heads](methods/closed-form.md). Default:
    none."""
    server: ServerBase = GivenStrategy()
    """Strategy, sampling, cohorts, deadlines."""
    listeners: Annotated[tuple[ListenerSettings, ...], Field(max_length=100)] = ()
    """Who follows the arm beside evaluation, records and progress, in this order."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        absent = [key for key in _OPTIONAL if getattr(self, key, None) is None]
        absent += [kebab(key) for key in absent]
        return {key: value for key, value in values.items() if key not in absent}


class Arm(ArmSettings):
    """One way of running an experiment: everything that one arm needs, all keys resolved."""

    families: ClassVar[Families]
    """What its sections were chosen from."""

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
    server_data: ServerDataSettings | None = None
    """The server's own examples, where participants are devices with data of their own. Default: splits of
    ``data``."""
    partition: PartitionBase = DirichletPartition(alpha=0.1)
    """Who holds what."""
    rounds: RoundSettings = RoundSettings()
    """How long an arm runs and how its curve is read."""

    @property
    def loaded_data(self) -> DataSettings:
        """What the server's process loads: the data, or its own part where devices hold the rest."""
        return self.data if self.server_data is None else held_data(self.data, self.server_data)


_SHARE = r"^(100(\.0+)?|[1-9][0-9]?(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)%-of-(converged|gain)$"

Target = Annotated[float, Field(gt=0, le=1)] | Annotated[str, Field(pattern=_SHARE, max_length=32)]


def _distinct_targets(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Refuse a target that stands twice, as ``90%-of-gain`` and ``90.0%-of-gain`` do."""
    values = {
        (target, "") if isinstance(target, float) else (float(target.partition("%")[0]), target[-4:])
        for target in targets
    }
    if len(values) != len(targets):
        raise ValueError("expected distinct targets; remove the repeated ones")
    return targets


Control = Literal["server", "averaged", "longer"]


class Experiment(Arm):
    """A whole experiment file; :func:`experiment_type` makes what reads one."""

    arm_type: ClassVar[type[Arm]]
    """What an arm of it is."""
    _folder: Path | None = PrivateAttr(default=None)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """Letters, digits, dot, hyphen, underscore. The default output folder is ``runs/<name>``."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1), Distinct] = (0,)
    """One run each. A seed varies partition, initial weights and sampling together."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1), AfterValidator(_distinct_targets)] = (
        "95%-of-converged",
    )
    """Accuracies in (0, 1]; shares in (0, 100] % of what the baseline converges to, such as
    ``95%-of-converged``; or, for tables with one large class, of what it gains over always naming that class,
    such as ``95%-of-gain``."""
    baseline: Text | None = None
    """The arm that others are compared with. Default: the first."""
    controls: Annotated[tuple[Control, ...], Distinct] = ()
    """Arms that are added under these names, for whoever doubts the others. ``server``: a model trained on
    the server's own labels alone, then federated rounds from it. ``averaged``: the teachers' weights,
    averaged. Both are else what the first consolidated arm is. ``longer``: the baseline with as many local
    steps more as the teachers make."""
    tuning: TuningSettings | None = None
    """What `kdfed tune` searches; a run does not use it."""
    recipes: dict[Text, Text] = Field(default_factory=dict)
    """What ``start: recipe`` was for which arm, and why; it is filled in where arms are spelled out."""
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """The arms by name (at most 64 letters, digits, hyphens, underscores); each replaces some keys of the
    experiment."""

    @property
    def folder(self) -> Path | None:
        """The folder of its file, whose modules it can name; None of one that was read from nowhere."""
        return self._folder

    def found_in(self, folder: Path) -> Experiment:
        """Return the same experiment, of a file in this folder."""
        copy = self.model_copy()
        copy._folder = folder
        return copy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Experiment) and _written(self) == _written(other)

    @property
    def baseline_arm(self) -> str:
        """Name of the arm that others are compared with."""
        return self.baseline if self.baseline is not None else next(iter(self.arms))

    @property
    def arm_order(self) -> tuple[str, ...]:
        """Names of the arms in the order they run: the baseline first, controls last."""
        rest = [name for name in self.arms if name != self.baseline_arm]
        return (self.baseline_arm, *sorted(rest, key=lambda name: name in self.controls))

    @property
    def counted_targets(self) -> tuple[Target, ...]:
        """The targets, and the one whose hit is the rounds to convergence."""
        return self.targets if CONVERGENCE in self.targets else (*self.targets, CONVERGENCE)

    @property
    def has_relative_targets(self) -> bool:
        """Whether a target is a share of what the baseline converges to."""
        return any(isinstance(target, str) for target in self.targets)

    @property
    def horizon(self) -> int:
        """Federated rounds of every arm.

        Raises
        ------
        ValueError
            If it is ``auto`` and was not found yet.
        """
        if self.rounds.horizon == "auto":
            raise ValueError("expected a horizon that was found, got auto; see with_horizon")
        return self.rounds.horizon

    def with_horizon(self, rounds: int, why: str) -> Experiment:
        """Return the same experiment, with a horizon that was found for it."""
        settings = self.rounds.model_copy(update={"horizon": rounds, "why": why})
        copy = self.model_copy(update={"rounds": settings})
        copy._folder = self._folder
        return copy

    def arm(self, name: str) -> Arm:
        """Return one arm with every key resolved.

        Raises
        ------
        KeyError
            If there is no such arm.
        """
        return self.arm_of(self.arms[name])

    def arm_of(self, keys: Mapping[str, Any]) -> Arm:
        """Return an arm that replaces these keys of the experiment."""
        shared = {key: value for key, value in self.model_dump(mode="json").items() if key in ARM_KEYS}
        return validate(self.arm_type, merge(shared, keys, self.families), self.families)

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = super()._without_what_is_not_there(handler)
        return {key: value for key, value in values.items() if key != "recipes" or value}

    def to_yaml(self) -> str:
        """Return the resolved experiment as YAML that reads back to an equal experiment."""
        return dump(self.model_dump(mode="json"))


def _written(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json")


ARM_KEYS = {kebab(name) for name in Arm.model_fields}
REPLACEABLE_KEYS = {kebab(name) for name in ArmSettings.model_fields}


def sunk_teachers(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Return the arms whose teachers existed already, and the folder or files that hold them."""
    arms = {name: experiment.arm(name) for name in experiment.arm_order}
    return {
        name: arm.teachers.files
        for name, arm in arms.items()
        if arm.start in ("consolidated", "averaged") and arm.teachers.from_ is not None
    }


def sampled_count(arm: Arm) -> int:
    """Return how many participants a round samples, at least one."""
    return arm.server.drawn(arm.partition.participants)


@lru_cache(maxsize=32)
def experiment_type(families: Families) -> type[Experiment]:
    """Return the schema of experiments that can choose from these families."""
    kinds: list[Any] = []
    make: Any = create_model
    for model in (Arm, Experiment):
        fields: dict[str, Any] = {}
        for section, family in families.sections.items():
            field = model.model_fields[section]
            default = field.default
            if not isinstance(default, tuple(family.members.values())):
                default = family.members[family.default]() if family.default in family.members else ...
            fields[section] = (family.union, Field(default=default, description=field.description))
        heads = families.opened(ClosedFormSettings)
        told = model.model_fields["closed_form"].description
        fields["closed_form"] = (heads | None, Field(default=None, description=told))
        made = make(model.__name__, __base__=model, __module__=__name__, __doc__=model.__doc__, **fields)
        made.families = families
        kinds.append(made)
    arm, experiment = kinds
    experiment.arm_type = arm
    return cast("type[Experiment]", experiment)
