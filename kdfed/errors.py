"""The error tree of kdfed.

::

    KdfedError
    ├── ConfigError        the experiment (file, ``--set``, command line) is wrong: exit code 2
    │   └── RunFolderError the output folder holds something that must not be lost: exit code 2
    ├── DataError          a data source cannot be read, or does not fit the experiment: exit code 2
    ├── WireError          a message does not have the keys, shapes or dtypes of ``kdfed.wire``
    ├── LogitsError        models that are distilled do not have finite logits
    ├── ParticipantError   one participant's work failed; it costs that participant its slot, not the run
    └── RunError           a run cannot go on (too few participants answered, ...): exit code 1
        └── RecordError    its records cannot be written (a full disk): no arm can go on

Every message says what was expected, what arrived and what to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST_TEXT = 500
"""Characters that :func:`clean_text` keeps."""


def clean_text(text: object, most: int = LONGEST_TEXT) -> str:
    """Return what somebody else said as one line that can be printed and kept in a record.

    White space and control characters become single blanks, what UTF-8 does not have becomes ``?``, a long
    text is cut and says so, and an empty one reads ``no reason given``.

    Parameters
    ----------
    text
        Anything; what is no text is shown as Python does.
    most
        Characters to keep.
    """
    whole = text if isinstance(text, str) else repr(text)
    start = whole[: 4 * most].encode("utf-8", "replace").decode("utf-8")
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    if len(line) > most or len(whole) > 4 * most:
        return f"{line[:most]}... ({len(whole)} characters)"
    return line or "no reason given"


MOST_CHARACTERS = 200
"""Of a value that a message repeats."""

MOST_MISTAKES = 100
"""That a message lists; the error itself holds all."""


def shown(value: object, most: int = MOST_CHARACTERS) -> str:
    """Return a value as a message repeats it: its ``repr``, on one line, shortened.

    Examples
    --------
    >>> shown("a" * 1000, 5)
    "'aaaa... (1002 characters)"
    """
    return shortened(repr(value), most)


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return text as a message repeats it: control characters escaped, shortened."""
    count = len(text)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return text if count <= most else f"{text}... ({count} characters)"


def unknown(what: str, name: object, known: Iterable[str], add: str) -> KdfedError:
    """Return the error of a name that nothing is registered for: nothing else is done in its stead.

    Parameters
    ----------
    what
        What the name is of, such as ``consolidation.method``.
    name
        What arrived.
    known
        What there is.
    add
        Where another one is registered.
    """
    return KdfedError(f"{what}: expected one of {', '.join(known)}, got {shown(name)}; {add} has no other")


class KdfedError(Exception):
    """Root of every error that kdfed raises on purpose."""

    exit_code = 1


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with an experiment.

    Parameters
    ----------
    key
        Dotted key, e.g. ``partition.alpha``; empty when the whole file is meant.
    message
        What was expected, what arrived and what to change.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{shortened(self.key)}: {self.message}" if self.key else self.message


class ConfigError(KdfedError):
    """All mistakes of an experiment at once.

    Parameters
    ----------
    source
        The file (or other place) that holds the mistakes.
    mistakes
        At least one mistake.
    """

    exit_code = 2

    def __init__(self, source: str, mistakes: Sequence[Mistake]) -> None:
        self.source = source
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        lines = [f"{source}: {count} mistake{'s' if count > 1 else ''}"]
        lines += [f"  {mistake}" for mistake in self.mistakes[:MOST_MISTAKES]]
        if count > MOST_MISTAKES:
            lines.append(f"  and {count - MOST_MISTAKES} more")
        super().__init__("\n".join(lines))


class RunFolderError(KdfedError):
    """The output folder holds something that must not be lost."""

    exit_code = 2


class DataError(KdfedError):
    """A data source cannot be read, or does not fit the experiment.

    Parameters
    ----------
    message
        What was expected, what arrived and what to change.
    key
        The dotted key of the experiment that has to change.
    """

    exit_code = 2

    def __init__(self, message: str, key: str = "data.source") -> None:
        super().__init__(message)
        self.key = key


class WireError(KdfedError):
    """A message does not have the keys, shapes or dtypes that were agreed."""


class LogitsError(KdfedError):
    """Logits of some models are not finite.

    Parameters
    ----------
    places
        Which of ``count`` models, counted from 0.
    """

    def __init__(self, places: Sequence[int], count: int) -> None:
        self.places = tuple(places)
        super().__init__(
            f"expected finite logits, got infinity or NaN from teacher {', '.join(map(str, places))} of "
            f"{count} (counted from 0); lower teachers.lr"
        )


class ParticipantError(KdfedError):
    """One participant's work failed."""


class RunError(KdfedError):
    """A run cannot go on."""


class RecordError(RunError):
    """What a run has to record cannot be written."""
