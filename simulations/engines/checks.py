"""What an engine can find out before it starts anything: the parts of its ``check``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator

from kdfed.errors import ConfigError, Mistake
from simulations.engines.home import place


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raise all mistakes in one error, if there are any.

    Raises
    ------
    ConfigError
        With the mistakes.
    """
    found = list(mistakes)
    if found:
        raise ConfigError("the command line", found)


def missing_packages(engine: str, *packages: str) -> Iterator[Mistake]:
    """Name the packages that an engine needs and that are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        advice = "install kdfed[sim], or use --engine inprocess"
        yield Mistake("--engine", f"the {engine} engine needs {' and '.join(missing)}: {advice}")


def no_place() -> Iterator[Mistake]:
    """Say why there is no place for temporary files."""
    try:
        place()
    except OSError as error:
        yield Mistake("TMPDIR", str(error))
