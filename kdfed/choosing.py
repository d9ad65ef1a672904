"""Things that are chosen inside the section of another, with keys of their own.

A transfer set and an ensemble stand in the section of the KD method that uses them: their keys stand beside
their names. ``{transfer: noise, images: 100}`` is a transfer set of 100 images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from kdfed.settings import Settings, kebab
from kdfed.thing import Thing


class Chosen:
    """Marks a field that holds a thing of a family."""

    def __init__(self, tag: str) -> None:
        self.tag = tag


@lru_cache(maxsize=512)
def choices(model: type[Settings]) -> dict[str, dict[str, type[Thing]]]:
    """Return the fields of a model that hold a thing chosen by name: field -> name -> class."""
    return {
        name: {_name_of(kind, mark.tag): kind for kind in _kinds_in(field.annotation)}
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Chosen)
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
            default = getattr(field.get_default(call_default_factory=True), name, None)
            given = result.get(name, default)
            if (given is None and name not in result) or isinstance(given, Mapping | Thing):
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


def parts(settings: Settings, key: str) -> Iterator[tuple[str, Settings]]:
    """Yield settings and all that they hold, with dotted keys; what is chosen has the key of its holder."""
    yield key, settings
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Settings):
                inner = key if name in choices(type(settings)) else f"{key}.{kebab(name)}"
                yield from parts(one, inner)
