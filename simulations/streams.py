"""What the command prints must not end what it does: output is for people, records are the result.

Characters that the terminal's encoding lacks come out as ``?``. A reader that went away (``kdfed list | head
-1``) is not missed, and a stream that was closed from the start is as good as one that nobody reads. Output
that could not be written for another reason (a full disk) is reported at the end.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast


class Patient:
    """A text stream that takes what cannot be written.

    Parameters
    ----------
    stream
        What is written to; None where the process was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        """Why nothing is written any more, apart from a reader that went away."""
        self._gone = stream is None

    def write(self, text: str) -> int:
        """Write text where that is still possible; return its length."""
        if not self._gone and self.stream is not None:
            try:
                self.stream.write(text)
            except OSError as error:
                self._give_up(error)
            except ValueError:
                self._closed()
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        if not self._gone and self.stream is not None:
            try:
                self.stream.flush()
            except OSError as error:
                self._give_up(error)
            except ValueError:
                self._closed()

    def isatty(self) -> bool:
        """Whether people see it as it is written."""
        return not self._gone and self.stream is not None and self.stream.isatty()

    def _closed(self) -> None:
        """Write no more to a stream that somebody, such as a user's model, has closed."""
        if self.stream is None or not self.stream.closed:
            raise
        self._gone = True

    def _give_up(self, error: OSError) -> None:
        self._gone = True
        if not isinstance(error, BrokenPipeError):
            self.failure = error
        # Python writes the rest of the stream's buffer when it ends: that must have somewhere to go.
        with suppress(OSError, ValueError, AttributeError):
            descriptor = cast(TextIO, self.stream).fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def patient_streams() -> Iterator[Patient]:
    """Let nothing that is printed inside raise; standard output and error are as before afterwards.

    Yields
    ------
    Patient
        Standard output, flushed when the block ends.
    """
    _occupy_standard_descriptors()
    out, err = Patient(sys.stdout), Patient(sys.stderr)
    with ExitStack() as stack:
        for stream in (out.stream, err.stream):
            if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
                stack.callback(_reconfigure, stream, stream.errors)
                stream.reconfigure(errors="replace")
        stack.enter_context(redirect_stdout(cast(TextIO, out)))
        stack.enter_context(redirect_stderr(cast(TextIO, err)))
        stack.callback(err.flush)
        stack.callback(out.flush)
        yield out


def _occupy_standard_descriptors() -> None:
    """Open what was closed: the next file would get its number, and what children print would go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _reconfigure(stream: io.TextIOWrapper, errors: str) -> None:
    with suppress(OSError, ValueError):  # it was closed, or takes no more
        stream.reconfigure(errors=errors)
