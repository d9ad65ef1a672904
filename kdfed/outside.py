"""Which code of a user's is named in settings: what neither kdfed nor torchvision ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdfed.data.sources import SOURCES, kind_of
from kdfed.families import KDFED
from kdfed.family import FREE
from kdfed.models import is_shipped


def is_shipped_source(name: str) -> bool:
    """Tell whether a data source is one of kdfed's, never ``package.module:name``."""
    return kind_of(name) in SOURCES


def outside_names(values: Any) -> Iterator[tuple[str, str]]:
    """Yield what nested settings name that is not shipped: what it is, and its name.

    Parameters
    ----------
    values
        Nested mappings and lists, as settings are dumped. Strategies are not looked at: they are the
        server's.
    """
    families = {family.tag: family for family in KDFED}
    if isinstance(values, list):
        for value in values:
            yield from outside_names(value)
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        if not isinstance(value, str):
            if key not in FREE:
                yield from outside_names(value)
        elif key == "name" and not is_shipped(value):
            yield "model", value
        elif key == "source" and not is_shipped_source(value):
            yield "data source", value
        elif key in families and value not in families[key].members:
            yield families[key].noun, value
