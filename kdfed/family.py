"""Families of things, one file a thing, and their registries.

A family is a visible dict of names. A name of the form ``package.module:name`` stands for a class of the
user's, which is looked up, checked against what the family documents, and then treated as if it stood in that
dict.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast

from pydantic import ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from kdfed.choosing import Chosen, choices, gathered, own_keys
from kdfed.errors import KdfedError, expected_one_of, shown
from kdfed.named import NamedError, blamed, is_named, load_named
from kdfed.settings import Settings, kebab
from kdfed.thing import Thing

T = TypeVar("T", bound=Thing)
S = TypeVar("S", bound=Settings)

FREE = ("options", "columns", "classes")
"""Keys of whose values nothing is looked up, whatever they are called."""


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
        What each of them derives from: its abstract methods are what a thing must provide.
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
        return Annotated[union, Chosen(self.tag)]

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
            raise KdfedError(expected_one_of(self.members, name))
        found = self._checked(name)
        with blamed(name, f"expected {name} to be a class whose settings can be made"):
            found.model_rebuild()
            return cast("type[T]", _named(self.base, self.tag, name, found))

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
        methods = {key: lambda self, *_: None for key in getattr(self.base, "__abstractmethods__", ())}
        body = {**methods, "__module__": __name__, "model_config": ConfigDict(extra="allow")}
        placeholder: Any = type(self.base)(self.base.__name__, (self.base,), body)
        return cast("type[T]", _named(self.base, self.tag, name, placeholder))

    def _checked(self, name: str) -> type[Thing]:
        found = load_named(name)
        wanted = f"expected {name} to be a class derived from {self.base.__module__}.{self.base.__name__}"
        if not (isinstance(found, type) and issubclass(found, self.base)):
            what = f"the class {found.__name__}" if isinstance(found, type) else f"{shown(found)}"
            raise NamedError(f"{wanted} ({self.noun}), got {what}")
        for method in sorted(_public(self.base)):
            theirs, ours = (inspect.signature(getattr(kind, method)) for kind in (found, self.base))
            if method in getattr(found, "__abstractmethods__", ()):
                raise NamedError(f"{wanted} that has {method}{ours}, got none")
            if not _takes(theirs, ours):
                raise NamedError(f"{wanted} whose {method} takes {ours}, got {theirs}")
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
        return {
            family.section: replace(
                family, members={name: self.opened(kind) for name, kind in family.members.items()}
            )
            for family in self.every
            if not family.inner
        }

    def opened(self, model: type[S]) -> type[S]:
        """Return a model in which everything of these families can be chosen; itself where it can already."""
        return _opened(model, {family.tag: family for family in self.every if family.inner})

    def including(self, key: str, name: str, kind: type[Thing]) -> Families:
        """Return the families, with one more thing in one of them."""
        return Families(tuple(one.including(name, kind) if one.key == key else one for one in self.every))

    def named_in(self, values: Any) -> Iterator[tuple[str, Family[Any], str]]:
        """Yield what nested values, as read from a file, choose by name: dotted key, family, name."""
        for key, value in _leaves(values):
            if not isinstance(value, str):
                continue
            own_key = re.sub(r"^(\.\d+\.)?(arms\.[^.]*\.)?", "", key)
            for family in self.every:
                inside = family.inner and re.fullmatch(rf"server\.\w+\.{family.tag}", own_key)
                if own_key == family.key or inside:
                    yield key, family, value

    def open_to(self, values: Any) -> tuple[Families, list[tuple[str, str]]]:
        """Look up what the values of an experiment, as read from a file, name that is not registered.

        See :meth:`including_all`.
        """
        return self.including_all(self.named_in(values))

    def including_all(
        self, names: Iterable[tuple[str, Family[Any], str]]
    ) -> tuple[Families, list[tuple[str, str]]]:
        """Look up what is not registered.

        Parameters
        ----------
        names
            Dotted key, family and name of whatever is chosen.

        Returns
        -------
        families, problems
            The families with those things; and what could not be found, by dotted key. In its place stands
            something that takes any keys, so that the rest can be looked at.
        """
        families, problems = self, []
        for key, family, name in names:
            if not is_named(name) or name in families[family.key].members:
                continue
            try:
                kind = family.find(name)
                with blamed(name, f"expected {name} to be a class whose settings can be made"):
                    families.including(family.key, name, kind).sections  # noqa: B018 - refuses clashing keys
            except NamedError as error:
                problems.append((key, str(error)))
                kind = family.placeholder(name)
            families = families.including(family.key, name, kind)
        return families, problems

    def with_placeholders(self, values: Any) -> Families:
        """Return families with a :meth:`~Family.placeholder` for every name in values, importing nothing."""
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


def _opened(model: type[S], inner: Mapping[str, Family[Any]]) -> type[S]:
    """Return a model whose fields can hold every thing of these families; itself where they do already."""
    changed: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        marks = [mark.tag for mark in field.metadata if isinstance(mark, Chosen)]
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


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            if key in FREE:
                continue
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from _leaves(value, f"{prefix}.{number}")
    else:
        yield prefix, values
