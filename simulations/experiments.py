"""Everything that an experiment can choose from, put together: the composition root of the schema."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdfed import config
from kdfed.config import Experiment
from kdfed.errors import ConfigError, Mistake, shown
from kdfed.families import KDFED
from kdfed.family import Families
from strategies.catalogue import STRATEGIES

FAMILIES = Families((*KDFED, STRATEGIES))
"""The families of kdfed and of the strategies."""

merge = partial(config.merge, families=FAMILIES)
"""See :func:`kdfed.config.merge`."""


SHIPPED = Path(__file__).parent
"""The folder of the experiments that come with kdfed, beside studies and matrices of experiments."""

_OTHERS = ("matrix", "study")


def shipped_experiments() -> list[str]:
    """Return the names of the experiments that come with kdfed."""
    names = (path.name for path in SHIPPED.glob("*.yaml"))
    return sorted(name for name in names if not name.startswith(_OTHERS))


def found_experiment(name: str) -> Path:
    """Return the file that a run-config names: a path, a file of the Flower app, or a shipped experiment.

    Raises
    ------
    ConfigError
        If there is no such file; it names those that are shipped.
    """
    named = Path(name)
    places = [Path(), *map(Path, sys.path[:1]), SHIPPED]  # Flower puts the app's folder first
    for path in (place / named for place in places):
        if path.is_file():
            return path
    known = ", ".join(shipped_experiments())
    problem = f"expected a path, or one of {known}, got {shown(name)}"
    raise ConfigError("run-config", [Mistake("experiment", problem)])


def load_experiment(
    path: str | Path, assignments: Sequence[str] = (), seeds: Sequence[str | int] | None = None
) -> Experiment:
    """See :func:`kdfed.config.load_experiment`."""
    return config.load_experiment(path, FAMILIES, assignments, seeds)


def examine_experiment(
    path: str | Path, assignments: Sequence[str] = (), seeds: Sequence[str | int] | None = None
) -> tuple[Experiment | None, list[Mistake]]:
    """See :func:`kdfed.config.examine_experiment`."""
    return config.examine_experiment(path, FAMILIES, assignments, seeds)


def build_experiment(values: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """See :func:`kdfed.config.build_experiment`."""
    return config.build_experiment(values, FAMILIES, source)
