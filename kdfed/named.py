"""What a user names by ``package.module:name``: finding it, calling it, and telling where it went wrong."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdfed.errors import KdfedError, shortened, shown, text_of
from kdfed.reasons import users_frame

SIGNALLED = frozenset(128 + number for number in (1, 2, 15))
"""Exit codes of a process that a signal ended: such an exit is no mistake in any code."""


class NamedError(KdfedError):
    """A name stands for nothing that can be called, or what it stands for failed."""


def is_named(name: str) -> bool:
    """Tell whether a name has the form of a user's, ``package.module:name``."""
    module, _, attribute = name.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


_FOLDERS: list[Path] = []
"""Those that are searched; the last is that of the experiment that was read last."""


def search_in(folder: Path) -> None:
    """Let names be found in the modules of a folder too: behind everything that is installed.

    Parameters
    ----------
    folder
        That of an experiment file.
    """
    folder = folder.absolute()
    if folder in _FOLDERS:
        _FOLDERS.remove(folder)
    _FOLDERS.append(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _refuse_hidden(name: str) -> None:
    """Refuse a module beside the experiment that another one of the same name, found first, would hide."""
    top = name.partition(":")[0].partition(".")[0]
    beside = [
        file for folder in _FOLDERS for file in (folder / f"{top}.py", folder / top / "__init__.py")
        if file.exists()
    ]  # fmt: skip
    if not beside:
        return
    spec = importlib.util.find_spec(top)
    found = Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None
    if found is None or not (found.exists() and found.samefile(beside[-1])):
        raise NamedError(
            f"expected {shown(name)} to be that of {beside[-1]}, but the name {top!r} stands for "
            f"{found or 'a module of Python itself'}, which is found first; rename the file"
        )


def load_named(name: str) -> Callable[..., Any]:
    """Return the callable that ``package.module:name`` stands for; its module is imported.

    Raises
    ------
    NamedError
        If the name has another form, the module cannot be imported, whatever it raises, or what it names is
        missing or cannot be called. Tells file and line of the mistake.
    """
    module_name, _, attribute = name.partition(":")
    if not is_named(name):
        raise NamedError(f"expected an importable package.module:name, got {shown(name)}")
    with blamed(name, f"expected an importable package.module:name, got {shown(name)}"):
        _refuse_hidden(name)
        found = getattr(importlib.import_module(module_name), attribute)
    if not callable(found):
        raise NamedError(f"expected {shown(name)} to be callable, got {_a(type(found).__name__)}")
    return found  # type: ignore[no-any-return]


def files_of(name: str) -> list[Path]:
    """Return the source files of what a user named: the one in which it is found, and where it is defined.

    Raises
    ------
    NamedError
        As :func:`load_named`.
    """
    found, files = load_named(name), []
    for thing in (sys.modules[name.partition(":")[0]], inspect.unwrap(found)):
        try:
            file = inspect.getsourcefile(thing)
        except TypeError:  # a builtin, or an object that is called
            continue
        if file is not None and Path(file).is_file():
            files.append(Path(file))
    return files


def signature_of(name: str, function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of what a user named.

    Raises
    ------
    NamedError
        If it has none that can be read, as many builtins.
    """
    with blamed(name, f"expected {shown(name)} to have a signature that can be read; wrap it in a function"):
        return inspect.signature(function)


def problem_with_options(name: str, options: Mapping[str, Any]) -> str | None:
    """Say why what a user named cannot be called with these keyword arguments; None where it can."""
    try:
        signature = signature_of(name, load_named(name)).replace(return_annotation=inspect.Signature.empty)
        signature.bind(**options)
    except NamedError as error:
        return str(error)
    except TypeError as error:
        return f"expected options of {shown(name)} that fit {signature}, got {shown(dict(options))}: {error}"
    return None


@contextmanager
def blamed(name: str, expected: str) -> Iterator[None]:
    """Run a user's code; whatever it raises becomes one error that says where.

    Parameters
    ----------
    name
        What the user named.
    expected
        The beginning of the message.

    Raises
    ------
    NamedError
        Whatever was raised, ``SystemExit`` included; not KdfedError, Ctrl-C, or an exit that a signal asked
        for.
    """
    try:
        yield
    except KdfedError:
        raise
    except BaseException as error:
        if ends_program(error):
            raise
        raise NamedError(f"{expected}; it raised {text_of_error(error, name)}") from error


def ends_program(error: BaseException) -> bool:
    """Tell whether an exception ends the program on purpose: Ctrl-C, or an exit that a signal asked for.

    Any other ``SystemExit`` is a mistake in whoever's code was called.
    """
    if isinstance(error, SystemExit):
        return error.code in SIGNALLED or hasattr(error, "ray_terminate_msg")  # Ray ends its workers so
    return isinstance(error, KeyboardInterrupt)


def text_of_error(error: BaseException, name: str) -> str:
    """Return what a user's code raised, and where: one line.

    Parameters
    ----------
    error
        What was raised.
    name
        What the user named. The location is the innermost frame of its package, or of other code that is not
        installed.

    Returns
    -------
    str
        For example ``ValueError: no width (my_models.py, line 12)``.
    """
    location = _location(error, name.partition(":")[0].partition(".")[0])
    text = error.msg if isinstance(error, SyntaxError) else text_of(error)
    if isinstance(error, SystemExit):
        text = f"{text}; code that is imported or called must not end the program"
    reason = shortened(
        ": ".join(part for part in (type(error).__name__, " ".join(text.split())) if part), 500
    )
    return f"{reason} ({location})" if location else reason


def _location(error: BaseException, package: str) -> str:
    """Return file and line of a mistake; empty where no code of the user's was running."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).exists():
        return f"{error.filename}, line {error.lineno}"
    found = users_frame(error, package)
    return "" if found is None else f"{found[0]}, line {found[1]}"


def _a(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
