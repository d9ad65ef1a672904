"""Replacing some keys of an experiment: in an arm, and by ``--set``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdfed.choosing import keys_of, own_keys
from kdfed.family import Families
from kdfed.settings import HEAD


def merge(
    base: Mapping[str, Any], changes: Mapping[str, Any], families: Families | None = None
) -> dict[str, Any]:
    """Replace some keys of nested mappings.

    Dotted keys reach into nested mappings. Where another thing is chosen (another ``kind``, ``mode``,
    ``strategy``, ``method``, ``transfer`` or ``ensemble``, or another ``name`` or ``backbone`` of a model),
    the other keys of that mapping that belonged to the old one are dropped.

    Parameters
    ----------
    base, changes
        Mappings as read from YAML; neither is changed.
    families
        What is chosen from. Default: nothing is dropped.

    Returns
    -------
    dict
        A new mapping.
    """
    result = dict(base)
    for key, value in undotted(changes).items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = merge(_without_what_went(key, old, value, families), value, families)
        else:
            result[key] = value
    return result


def _without_what_went(
    key: str, old: Mapping[str, Any], new: Mapping[str, Any], families: Families | None
) -> Mapping[str, Any]:
    """Return the old keys of a mapping, less those of a thing that is no longer chosen."""

    def changes(tag: str) -> bool:
        return tag in new and tag in old and bool(new[tag] != old[tag])

    if key == "model" and _is_another_model(old, new):
        return {}
    for family in families or ():
        if not changes(family.tag):
            continue
        if family.inner:
            gone, come = (family.members.get(str(values[family.tag])) for values in (old, new))
            lost = set() if gone is None else own_keys(gone, family.tag)
            lost -= set() if come is None else own_keys(come, family.tag)
            old = {name: value for name, value in old.items() if name not in lost}
        elif families is not None and family.section == key:
            kind = families.sections[key].members.get(str(new[family.tag]))
            known = {family.tag} if kind is None else keys_of(kind, {**old, **new})
            old = {name: value for name, value in old.items() if name in known}
    return old


def _is_another_model(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether changes name another backbone than the old one, or another model; each has a default."""
    if "backbone" in new and new["backbone"] != old.get("backbone"):
        return True
    name = old.get("name", HEAD if "backbone" in old else None)
    return name is not None and "name" in new and bool(new["name"] != name)


def undotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes with dotted keys turned into nested mappings."""
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


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by their dotted keys; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
