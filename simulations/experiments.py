"""Everything that an experiment can choose from, put together: the composition root of the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdfed import config
from kdfed.config import Experiment
from kdfed.errors import Mistake
from kdfed.families import KDFED
from kdfed.family import Families
from strategies.catalogue import STRATEGIES

FAMILIES = Families((*KDFED, STRATEGIES))
"""The families of kdfed and of the strategies."""

merge = partial(config.merge, families=FAMILIES)
"""See :func:`kdfed.config.merge`."""


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
