"""What a check finds."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: Literal["fine", "note", "wrong"]
    """``note``: it works, or may work, but somebody should know."""
    what: str
    """A few words: whose, and what."""
    text: str
    """What is so; where it is wrong: what was expected, what was found and what to change."""

    def of(self, whose: str) -> Finding:
        """Return the finding with the name of whom it is about."""
        return self._replace(what=f"{whose}: {self.what}")

    def __str__(self) -> str:
        return f"{self.level:5}  {self.what}: {self.text}"


def fine(what: str, text: str) -> Finding:
    """Return what is as it should be."""
    return Finding("fine", what, text)


def note(what: str, text: str) -> Finding:
    """Return what somebody should know."""
    return Finding("note", what, text)


def wrong(what: str, text: str) -> Finding:
    """Return what has to be changed."""
    return Finding("wrong", what, text)


def reason(error: BaseException) -> str:
    """Return why a file or the network could not be used, in few words."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__)
