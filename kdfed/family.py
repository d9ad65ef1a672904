"""What an experiment can choose from by name: families of things, one file a thing, and their registries.

A thing is a frozen settings class. Its fields are the keys that it has in an experiment file, its methods are
its mathematics, and it says itself what it cannot be put together with. A family is a visible dict of names;
a name of the form ``package.module:name`` stands for a class of the user's, which is looked up, checked
against what the family documents, and then treated as if it stood in that dict.

Some things are chosen inside the section of another: a transfer set and an ensemble stand, with keys of their
own, in the section of the KD method that uses them (:class:`Choosing`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo

from kdfed.errors import KdfedError, near, shown
from kdfed.named import NamedError, is_named, load_named
from kdfed.settings import Settings, kebab

T = TypeVar("T", bound="Thing")
S = TypeVar("S", bound=Settings)


class Refusal(NamedTuple):
    """What does not go together.

    Parameters
    ----------
    key
        Where it is wrong; from a dot on, a key of the thing's own section: ``.weight``.
    message
        What was expected, what arrived and what to change.
    depends
        Other keys that were read for it. Where one of them is wrong already, nothing is said.
    """

    key: str
    message: str
    depends: tuple[str, ...] = ()


def within(refusal: Refusal, section: str) -> Refusal:
    """Return a refusal with the whole keys of a thing that stands in this section."""
    key, *depends = (
        section + name if name.startswith(".") or not name else name
        for name in (refusal.key, *refusal.depends)
    )
    return Refusal(key, refusal.message, tuple(depends))


class Thing(Settings):
    """Base of what a family consists of."""

    needs_classes: ClassVar[str] = "it needs classes"
    """Why a regression cannot have it; empty where it can."""

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Yield what it cannot be put together with.

        Parameters
        ----------
        arm
            A :class:`kdfed.config.Arm`: all keys resolved, each valid by itself.
        """
        return iter(())

    def misfits(self, arm: Any, data: Any) -> Iterator[Refusal]:
        """Yield what it cannot be put together with that only shows once the data are there.

        Parameters
        ----------
        arm
            As for :meth:`refusals`.
        data
            The :class:`kdfed.data.PreparedData` of the arm.
        """
        return iter(())


class _Chosen:
    """Marks a field that holds a thing of a family."""

    def __init__(self, tag: str) -> None:
        self.tag = tag


@dataclass(frozen=True, eq=False)
class Family(Generic[T]):
    """Things of one kind, by name.

    Parameters
    ----------
    noun
        What one of them is.
    key
        Where an experiment names one, e.g. ``consolidation.method``. Its last part is the field that tells
        them apart.
    base
        What each of them derives from: its abstract methods are what a thing owes.
    members
        The registry, in the order of lists.
    default
        The name where a section says none; empty where it must.
    inner
        Whether they stand inside the section of another thing: see :class:`Choosing`.
    """

    noun: str
    key: str
    base: Any
    members: Mapping[str, type[T]]
    default: str = ""
    inner: bool = False

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in their order."""
        return iter(self.members)

    @property
    def plural(self) -> str:
        """What several of them are."""
        return f"{self.noun[:-1]}ies" if self.noun.endswith("y") else f"{self.noun}s"

    @property
    def section(self) -> str:
        """The section of an experiment where things of this family are chosen."""
        return self.key.partition(".")[0]

    @property
    def tag(self) -> str:
        """The key that holds the name."""
        return self.key.rpartition(".")[2]

    @cached_property
    def union(self) -> Any:
        """The type of a field that holds any of them."""
        kinds = tuple(self.members.values())
        union = Annotated[Union[kinds], Field(discriminator=self.tag)] if len(kinds) > 1 else kinds[0]  # noqa: UP007
        return Annotated[union, _Chosen(self.tag)]

    def find(self, name: str) -> type[T]:
        """Return what a name stands for.

        Raises
        ------
        KdfedError
            If there is nothing of this name.
        NamedError
            If it is a ``package.module:name`` that cannot be imported, or what it names is not what the
            family documents.
        """
        if name in self.members:
            return self.members[name]
        if not is_named(name):
            raise KdfedError(
                f"expected one of {', '.join(self.members)} or package.module:name, got "
                f"{shown(name)}{near(name, self.members)}"
            )
        return cast("type[T]", _named(self.base, self.tag, name, self._checked(name)))

    def parse(self, text: str) -> T:
        """Read a thing that was written as JSON: of a message, or a cache.

        Raises
        ------
        KdfedError
            As :meth:`find`; pydantic's ValidationError where the settings are wrong.
        """
        values = json.loads(text)
        kind = self.find(str(values.get(self.tag, self.default)))
        return kind.model_validate_json(json.dumps(gathered(kind, values)))

    def including(self, name: str, kind: type[T]) -> Family[T]:
        """Return the family with one more member."""
        return replace(self, members={**self.members, name: kind})

    def placeholder(self, name: str) -> type[T]:
        """Return what stands for somebody's thing where their code must not be imported: any keys."""
        owed = {key: lambda self, *_: None for key in getattr(self.base, "__abstractmethods__", ())}
        body = {**owed, "__module__": __name__, "model_config": ConfigDict(extra="allow")}
        hollow: Any = type(self.base)(self.base.__name__, (self.base,), body)
        return cast("type[T]", _named(self.base, self.tag, name, hollow))

    def _checked(self, name: str) -> type[Thing]:
        found = load_named(name)
        wanted = f"expected {name} to be a class derived from {self.base.__module__}.{self.base.__name__}"
        if not (isinstance(found, type) and issubclass(found, self.base)):
            what = f"the class {found.__name__}" if isinstance(found, type) else f"{shown(found)}"
            raise NamedError(f"{wanted} ({self.noun}), got {what}")
        for owed in sorted(_public(self.base)):
            theirs, ours = (inspect.signature(getattr(kind, owed)) for kind in (found, self.base))
            if owed in getattr(found, "__abstractmethods__", ()):
                raise NamedError(f"{wanted} that has {owed}{ours}, got none")
            if not _takes(theirs, ours):
                raise NamedError(f"{wanted} whose {owed} takes {ours}, got {theirs}")
        return found


def _public(kind: type) -> set[str]:
    return {
        name
        for base in kind.__mro__
        if issubclass(base, Thing)
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith(("_", "model_"))
    }


def _takes(theirs: inspect.Signature, ours: inspect.Signature) -> bool:
    """Tell whether a method can be called as the family calls it."""
    positional = [None for p in ours.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: None for p in ours.parameters.values() if p.kind is p.KEYWORD_ONLY}
    try:
        theirs.bind(*positional, **keywords)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=256)
def _named(base: type[Thing], tag: str, name: str, found: type[Thing]) -> type[Thing]:
    """Return a class that answers to a name, as those that are registered do."""
    fields: dict[str, Any] = {tag: (Literal[name], name)}
    return create_model(
        found.__name__, __base__=found, __module__=found.__module__, __doc__=found.__doc__, **fields
    )


# ----------------------------------------------------------------------------- things inside a section


@lru_cache(maxsize=512)
def choices(model: type[Settings]) -> dict[str, dict[str, type[Thing]]]:
    """Return the fields of a model that hold a thing chosen by name: field -> name -> class."""
    return {
        name: {_name_of(kind, mark.tag): kind for kind in _kinds_in(field.annotation)}
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, _Chosen)
    }


def own_keys(kind: type[Thing], tag: str) -> set[str]:
    """Return the keys that a thing adds to the section in which it is chosen."""
    return {kebab(name) for name in kind.model_fields if name != tag}


def keys_of(kind: type[BaseModel], values: Mapping[str, Any]) -> set[str]:
    """Return the keys of settings in a file, those of what values choose inside of it included."""
    keys = {kebab(name) for name in kind.model_fields}
    for field, kinds in choices(kind).items():
        default = getattr(kind.model_fields[field].default, field, None)
        chosen = kinds.get(str(values.get(field, default)))
        keys |= set() if chosen is None else own_keys(chosen, field)
    return keys


def _kinds_in(annotation: Any) -> tuple[type[Thing], ...]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        parts = get_args(annotation)
        parts = parts[:1] if get_origin(annotation) is Annotated else parts
        return tuple(kind for part in parts for kind in _kinds_in(part))
    return (annotation,)


def _name_of(kind: type[Thing], tag: str) -> str:
    return str(get_args(kind.model_fields[tag].annotation)[0])


def gathered(model: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of settings, in which the keys of what is chosen by name stand inside of it."""
    result = dict(values)
    for name, field in model.model_fields.items():
        kinds, kind = choices(model).get(name), field.annotation
        if kinds is not None:
            given = result.get(name)
            if given is None:
                given = getattr(field.get_default(call_default_factory=True), name, None)
            if given is None or isinstance(given, Mapping | Thing):
                continue  # put together already
            chosen = kinds.get(given) if isinstance(given, str) else None
            own = set() if chosen is None else own_keys(chosen, name)
            if chosen is not None and chosen.model_config.get("extra") == "allow":  # nobody knows its keys
                own = set(result) - {name}
            own -= {key for field in model.model_fields for key in (field, kebab(field))}
            moved = {key: result.pop(key) for key in list(result) if kebab(key) in own or key in own}
            result[name] = {name: given, **moved}
        elif isinstance(kind, type) and issubclass(kind, Settings):
            for key in {name, kebab(name)}:
                if isinstance(result.get(key), Mapping):
                    result[key] = gathered(kind, result[key])
    return result


class Choosing(Settings):
    """Settings in which things are chosen by name; the keys of what is chosen stand beside the name.

    ``{transfer: noise, images: 100}`` becomes a transfer set of 100 images, and is written like that again.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**gathered(type(self), values))

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # JSON is gathered by who reads it

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for field in choices(type(self)):
            if isinstance(values.get(field), dict):
                chosen = values.pop(field)
                values |= chosen
        return values


def _opened(model: type[S], inner: Mapping[str, Family[Any]]) -> type[S]:
    """Return a model whose fields can hold every thing of these families; itself where they do already."""
    changed: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        marks = [mark.tag for mark in field.metadata if isinstance(mark, _Chosen)]
        kind = field.annotation
        if marks:
            _refuse_clashes(model, inner)
        if marks and set(choices(model)[name].values()) != set(inner[marks[0]].members.values()):
            changed[name] = (inner[marks[0]].union, _copied(field))
        elif (
            isinstance(kind, type)
            and issubclass(kind, Settings)
            and (new := _opened(kind, inner)) is not kind
        ):
            default = field.get_default(call_default_factory=True)
            changed[name] = (new, _copied(field, new(**default.model_dump())))
    if not changed:
        return model
    return create_model(
        model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **changed
    )


def _copied(field: FieldInfo, default: object = None) -> FieldInfo:
    if field.is_required():
        return cast("FieldInfo", Field(description=field.description))
    default = default if default is not None else field.get_default(call_default_factory=True)
    return cast("FieldInfo", Field(default=default, description=field.description))


def _refuse_clashes(model: type[Settings], inner: Mapping[str, Family[Any]]) -> None:
    """Refuse things whose keys mean something else already where they would stand."""
    taken = {kebab(name): "the section has it" for name in model.model_fields}
    for family in inner.values():
        if family.tag not in model.model_fields:
            continue
        for name, kind in family.members.items():
            for key in own_keys(kind, family.tag):
                if key in taken and taken[key] != family.noun:
                    raise NamedError(
                        f"expected {family.noun} {name} to have keys of its own, got {key!r}, which "
                        f"{model.__name__} or what is chosen beside it has too; give it another name"
                    )
        taken |= {key: family.noun for kind in family.members.values() for key in own_keys(kind, family.tag)}


@dataclass(frozen=True, eq=False)
class Families:
    """Everything that an experiment can choose from by name.

    Parameters
    ----------
    every
        The families; each key once.
    """

    every: tuple[Family[Any], ...]

    def __getitem__(self, key: str) -> Family[Any]:
        return next(family for family in self.every if family.key == key)

    def __iter__(self) -> Iterator[Family[Any]]:
        return iter(self.every)

    @cached_property
    def sections(self) -> dict[str, Family[Any]]:
        """The families whose things are whole sections of an experiment, by section."""
        inner = {family.tag: family for family in self.every if family.inner}
        return {
            family.section: replace(
                family, members={name: _opened(kind, inner) for name, kind in family.members.items()}
            )
            for family in self.every
            if not family.inner
        }

    def including(self, key: str, name: str, kind: type[Thing]) -> Families:
        """Return the families, with one more thing in one of them."""
        return Families(tuple(one.including(name, kind) if one.key == key else one for one in self.every))

    def named_in(self, values: Any) -> Iterator[tuple[str, Family[Any], str]]:
        """Yield what nested values, as read from a file, choose by name: dotted key, family, name."""
        tags = {family.tag: family for family in self.every}
        for key, value in _leaves(values):
            family = tags.get(key.rpartition(".")[2])
            if family is not None and isinstance(value, str):
                yield key, family, value

    def open_to(self, values: Any) -> tuple[Families, list[tuple[str, str]]]:
        """Look up what values name that is not registered.

        Parameters
        ----------
        values
            Nested, as read from a file.

        Returns
        -------
        families, problems
            The families with those things; and what could not be found, by dotted key. In its place stands
            something that takes any keys, so that the rest can be looked at.
        """
        families, problems = self, []
        for key, family, name in self.named_in(values):
            if not is_named(name) or name in families[family.key].members:
                continue
            try:
                kind = family.find(name)
                families.including(family.key, name, kind).sections  # noqa: B018 - refuses clashing keys
            except NamedError as error:
                problems.append((key, str(error)))
                kind = family.placeholder(name)
            families = families.including(family.key, name, kind)
        return families, problems

    def hollow(self, values: Any) -> Families:
        """Return families in which whatever values name takes any keys, and nobody's code is imported."""
        families = Families(
            tuple(family if family.inner else replace(family, members={}) for family in self.every)
        )
        for _, family, name in self.named_in(values):
            if name not in families[family.key].members:
                families = families.including(family.key, name, family.placeholder(name))
        for family in families:
            if not family.members:  # its section is lacking
                families = families.including(family.key, "unnamed", family.placeholder("unnamed"))
        return families


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list):
        for place, value in enumerate(values):
            yield from _leaves(value, f"{prefix}.{place}")
    else:
        yield prefix, values


def parts(settings: Settings, key: str) -> Iterator[tuple[str, Settings]]:
    """Yield settings and all that they hold, with dotted keys; what is chosen has the key of its holder."""
    yield key, settings
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Settings):
                inner = key if name in choices(type(settings)) else f"{key}.{kebab(name)}"
                yield from parts(one, inner)
