"""Packages that only an extra installs: imported where they are used; one error where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from kdfed.errors import RunError


def optional(module: str, what: str, extra: str = "sim") -> ModuleType:
    """Import a module of an optional package.

    Parameters
    ----------
    module
        Dotted name.
    what
        What needs it, in the plural, for the error.
    extra
        The extra of kdfed that installs it.

    Raises
    ------
    RunError
        If it cannot be imported; the message says what installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(
            f"{what} need the package {module.partition('.')[0]!r}: pip install 'kdfed[{extra}]' ({error})"
        ) from error
