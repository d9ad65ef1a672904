"""The experiment, as frozen pydantic models, and the reader that reports every mistake at once.

An experiment is a YAML file. Keys are kebab-case, unknown keys are mistakes, and an option that would have no
effect is a mistake too. An arm is the experiment with some keys replaced; only keys of :class:`ArmSettings`
can be replaced, because arms share data, participants, seeds and targets. What an experiment can choose from
by name comes from outside: :func:`experiment_type` makes the schema of given families.

Reading order: :mod:`kdfed.settings`, :mod:`kdfed.family`, :mod:`kdfed.config.experiment`,
:mod:`kdfed.config.checks`, :mod:`kdfed.config.reading`.
"""

from kdfed.config.checks import combinations, cross_checks, server_labels
from kdfed.config.controls import with_horizon
from kdfed.config.experiment import (
    Arm,
    ArmSettings,
    Experiment,
    Target,
    experiment_type,
    sampled_count,
    sunk_teachers,
)
from kdfed.config.merging import dotted, merge
from kdfed.config.reading import (
    build_experiment,
    examine_experiment,
    load_experiment,
    model_paths,
    moved_models,
    parse_set,
    read_mapping,
    read_recorded,
    split_set,
    unrelated,
    written,
)

__all__ = [
    "Arm",
    "ArmSettings",
    "Experiment",
    "Target",
    "build_experiment",
    "combinations",
    "cross_checks",
    "dotted",
    "examine_experiment",
    "experiment_type",
    "load_experiment",
    "merge",
    "model_paths",
    "moved_models",
    "parse_set",
    "read_mapping",
    "read_recorded",
    "sampled_count",
    "server_labels",
    "split_set",
    "sunk_teachers",
    "unrelated",
    "with_horizon",
    "written",
]
