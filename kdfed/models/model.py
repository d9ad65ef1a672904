"""What the registry holds: a model, or an origin of models that have names of their own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

Builder: TypeAlias = Callable[..., nn.Module]
"""Takes (input_shape, classes, **options); a user's may take options alone. Of those everything is read from
its signature."""


@dataclass(frozen=True)
class Model:
    """A model by name.

    Parameters
    ----------
    build
        Takes (input_shape, classes, **options); returns a model that maps [N, *input_shape] to logits
        [N, classes].
    description
        One line for ``kdfed list``.
    images_only
        Whether its inputs must be (channels, height, width).
    problem
        Takes the options; says what is wrong with them, or with the name, without data. Default: options are
        checked against the signature of ``build``.
    """

    build: Builder
    description: str
    images_only: bool = False
    problem: Callable[[Mapping[str, Any]], str | None] | None = None


@dataclass(frozen=True)
class Origin:
    """Models whose names say where they come from, and which of them is meant: ``torchvision:resnet18``.

    Parameters
    ----------
    find
        Takes the whole name; returns its model, or raises KdfedError. Of one name it should return the same,
        which is tried once.
    description
        One line for ``kdfed list``.
    shipped
        What whole names match that stand for nobody's code but kdfed's and its dependencies'. Default: none.
    """

    find: Callable[[str], Model]
    description: str
    shipped: re.Pattern[str] | None = None


def near(word: str, known: Iterable[str]) -> str:
    """Return the end of a message: the nearest of the known names, else all of them in their order."""
    names = list(known)
    match = difflib.get_close_matches(word, names, n=1)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(names)}" if names else "; it has no options"
