"""What an engine can find out before it starts anything: the parts of its ``check``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator

from kdfed.config import Experiment
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


def refuse_devices(experiment: Experiment) -> None:
    """Refuse an experiment whose participants are devices: there are none in a simulation.

    Raises
    ------
    ConfigError
        If it is one.
    """
    if experiment.data.of_devices:
        raise ConfigError(
            experiment.name,
            [
                Mistake(
                    "data.source",
                    "expected data that a simulation can deal, got 'devices', whose examples never leave "
                    "them: start it with `flwr run` on a SuperLink, whose SuperNodes are the devices; to "
                    "simulate it, name a data set of everybody's examples, and partition: {kind: column}",
                )
            ],
        )


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
