"""Replacing some keys of an experiment: in an arm, and by ``--set``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from kdfed.config.sections import (
    ConsolidationSettings,
    LocalSettings,
    PartitionSettings,
    ServerSettings,
    Settings,
    kebab,
)

DISCRIMINATORS = ("kind", "mode", "strategy", "method")
"""Keys whose value says which other keys there are."""


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
    for key, value in undotted(changes).items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            for tag in (*DISCRIMINATORS, *(("name",) if key == "model" else ())):
                if tag in value and tag in old and value[tag] != old[tag]:
                    known = _keys_of_variant(key, tag, value[tag])
                    old = {k: v for k, v in old.items() if k in known}
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


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


def variants(section: str) -> dict[str, type[Settings]]:
    """Return the variants of ``partition``, ``local``, ``server`` or ``consolidation`` by name."""
    unions = {
        "partition": PartitionSettings,
        "local": LocalSettings,
        "server": ServerSettings,
        "consolidation": ConsolidationSettings,
    }
    found: dict[str, type[Settings]] = {}
    for variant in get_args(get_args(unions[section])[0]):
        for tag in DISCRIMINATORS:
            if tag in variant.model_fields:
                found[get_args(variant.model_fields[tag].annotation)[0]] = variant
    return found


def _keys_of_variant(section: str, tag: str, value: object) -> set[str]:
    if section not in ("partition", "local", "server", "consolidation"):
        return set()
    variant = variants(section).get(str(value))
    return {kebab(name) for name in variant.model_fields} if variant else {tag}
