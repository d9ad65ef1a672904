"""What an experiment can choose by name: a thing, its settings, its mathematics and what it refuses.

A thing is a frozen settings class. Its fields are the keys that it has in an experiment file, its methods are
its mathematics, and it says itself what it cannot be put together with. Things of one kind are a family
(:mod:`kdfed.family`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from kdfed.settings import Settings


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

    def __hash__(self) -> int:
        return hash((type(self), self.model_dump_json()))  # lists among its settings have no hash

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


def origin_of(thing: Thing | type[Thing]) -> str:
    """Return ``package.module:name`` of a thing's class: whose code is to blame for what it raises."""
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}:{kind.__name__}"
