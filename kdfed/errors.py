"""The error tree of kdfed.

::

    KdfedError
    ├── ConfigError        the experiment (file, ``--set``, command line) is wrong: exit code 2
    │   └── RunFolderError the output folder holds something that must not be lost: exit code 2
    ├── DataError          a data source cannot be read, or does not fit the experiment: exit code 2
    ├── MessageError       a message does not have the keys, shapes or dtypes of ``kdfed.messages``
    ├── LogitsError        models that are distilled do not have finite logits
    ├── ParticipantError   one participant's work failed; it costs that participant its slot, not the run
    └── RunError           a run cannot go on (too few participants answered, ...): exit code 1
        └── RecordError    its records cannot be written (a full disk): no arm can go on

Every message says what was expected, what arrived and what to change.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


def near(word: object, known: Iterable[str]) -> str:
    """Return the end of a message: the nearest known name, else all of them."""
    names = sorted(str(name) for name in known)
    return _meant(word, names) or (f"; known: {shortened(', '.join(names), 1000)}" if names else "")


def _meant(word: object, names: list[str]) -> str:
    match = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    return f"; did you mean {shown(match[0])}?" if match else ""


def expected_one_of(known: Iterable[str], got: object) -> str:
    """Say what things a family has, of which what arrived is none; one of the user's would do, too."""
    names = list(known)
    return f"expected one of {', '.join(names)} or package.module:name, got {shown(got)}{_meant(got, names)}"


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

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, Sequence[Mistake]]]:
        """Return what another process makes the same error of."""
        return type(self), (self.source, self.mistakes)


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


class MessageError(KdfedError):
    """A message does not have the keys, shapes or dtypes that were agreed."""


class LogitsError(KdfedError):
    """Logits of some models are not finite.

    Parameters
    ----------
    teachers
        Which of ``count`` models, counted from 0.
    """

    def __init__(self, teachers: Sequence[int], count: int) -> None:
        self.teachers = tuple(teachers)
        super().__init__(
            f"expected finite logits, got infinity or NaN from teacher {', '.join(map(str, teachers))} of "
            f"{count} (counted from 0); lower teachers.lr, or leave out the file that it came from"
        )


class ParticipantError(KdfedError):
    """One participant's work failed."""


class RunError(KdfedError):
    """A run cannot go on."""


class RecordError(RunError):
    """What a run has to record cannot be written."""


# ----------------------------------------------------------------------------- texts of errors


MOST_OF_A_LINE = 200
"""Characters of a reason in a record."""

_MOST_READ = 50_000  # characters of either end of a text that are looked at
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r'\s+File ".*", line \d+')


def plain(text: str) -> str:
    """Return a text without what no terminal or file should get: control characters, half surrogates.

    Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    kept = (c if c in "\n\t" or unicodedata.category(c)[0] != "C" else " " for c in _COLOURS.sub("", text))
    return "".join(kept)


def text_of(value: object) -> str:
    """Return a value as text, also where the code that makes it, perhaps a user's, fails."""
    try:
        return str(value)
    except Exception as error:
        return f"its text cannot be made, which raises {type(error).__name__}"


def one_line(text: object, most: int = MOST_OF_A_LINE) -> str:
    """Return one short line that stands for a text of any length and from anywhere.

    Parameters
    ----------
    text
        An error, or a text about one.
    most
        Characters of the result, at least 1.

    Returns
    -------
    str
        All of a short text, its lines joined; of a long one the first line. A traceback is left out, and
        where there is nothing else its last line ``Type: message`` stands for it. Empty for an empty text.
    """
    whole = text_of(text)
    if len(whole) > 2 * _MOST_READ:
        whole = f"{whole[:_MOST_READ]}\n{whole[-_MOST_READ:]}"
    lines = [line for line in map(plain, whole.expandtabs().splitlines()) if line.strip()]
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    begins = next((number for number, line in enumerate(lines) if line.startswith("Traceback (")), len(lines))
    said = lines[: min([begins, *frames[:1]])]
    if not said and frames:
        said = [line for line in lines[frames[-1] + 1 :] if not line[0].isspace()] or lines[-1:]
    joined = " ".join(" ".join(said).split())
    if len(joined) > most and said:
        joined = " ".join(said[0].split())
    return joined if len(joined) <= most else joined[: most - 1] + "…"
