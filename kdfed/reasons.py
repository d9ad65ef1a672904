"""Why something failed, for two readers: one line for a record, and the whole text for a log, once."""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import PurePath

from kdfed.errors import MOST_OF_A_LINE, KdfedError, one_line, plain, text_of

MOST_OF_A_TEXT = 8_000
"""Characters of a reason, traceback included, in a message and in a log."""

MOST_TEXTS = 500
"""Distinct texts that are logged: somebody who invents a new one every time must not fill a disk."""

_OURS = frozenset({"kdfed", "clients", "strategies", "simulations"})
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def users_frame(error: BaseException, package: str = "") -> tuple[str, int] | None:
    """Return file and line of the innermost frame that is the user's; None where there is none.

    Parameters
    ----------
    error
        What was raised.
    package
        Top package of what the user named, whose code is the user's wherever it lies. Besides it all code is
        that is neither installed, nor part of Python, nor ours.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file, top = frame.f_code.co_filename, str(frame.f_globals.get("__name__")).partition(".")[0]
        if top == package or not (top in _OURS or file.startswith(("<", *_INSTALLED))):
            return file, line
    return None


def reason_of(error: BaseException) -> str:
    """Say why something failed: a line for everybody, then the traceback for whoever has to mend it.

    Returns
    -------
    str
        ``Type: message`` of the error that came from the user's own code, if one did, with file and line:
        ``NameError: name 'foo' is not defined (mymodel.py, line 12)``. An error of ours in which no code of
        the user's is involved has no traceback. About :data:`MOST_OF_A_TEXT` characters at most.
    """
    source, location = _location(error)
    if isinstance(error, KdfedError) and not location:
        return _capped(f"{type(error).__name__}: {error}")
    if isinstance(source, SyntaxError):  # its message has file and line
        location = ""
    line = one_line(f"{type(source).__name__}: {text_of(source)}", MOST_OF_A_LINE - len(location))
    return _capped(f"{line}{location}\n{''.join(traceback.format_exception(error))}")


def _location(error: BaseException) -> tuple[BaseException, str]:
    """Return the first error with a frame that is the user's, and file and line of the innermost."""
    for one in reversed(list(_chain(error))):
        found = users_frame(one)
        if found is not None:
            file, line = found
            return one, f" ({PurePath(file).name[-60:]}, line {line})"
    return error, ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then the one that it came from, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _capped(text: str) -> str:
    """Return both ends of a text that is too long, without what no terminal should get."""
    half = MOST_OF_A_TEXT // 2
    return plain(text if len(text) <= MOST_OF_A_TEXT else f"{text[:half]}\n[...]\n{text[-half:]}").strip()


class Once:
    """Logs every distinct text once, whole.

    Texts with the same :func:`~kdfed.errors.one_line` are the same: Ray puts another process id into each.

    Parameters
    ----------
    log
        Where.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged: set[str] = set()

    def warn(self, what: str, text: str) -> str:
        """Log ``what: text``, unless the text was logged already; return its one line."""
        line = one_line(text) or "no reason was given"
        if line not in self._logged and len(self._logged) <= MOST_TEXTS:
            self._logged.add(line)
            if len(self._logged) > MOST_TEXTS:
                self._log.warning("more than %d different texts: no more of them are logged", MOST_TEXTS)
            else:
                self._log.warning("%s: %s", what, _capped(text) or line)
        return line
