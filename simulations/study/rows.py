"""From results of trials to the cells of ``study.json``, one a condition and method.

The winner of a search is chosen here, on validation accuracy alone.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from simulations.study.design import Condition, Trial, conditions, default_weight, trial_key, trials, untuned
from simulations.study.settings import StudySettings

Results = Mapping[str, Mapping[str, Any]]
"""Cache key of a trial -> its result."""


def rows_of(study: StudySettings, results: Results) -> dict[str, Any]:
    """Return what ``study.json`` holds.

    ``cells`` has one row a condition and method. Beside the study's methods, ``tuned-temperature`` and
    ``tuned-weight`` search one of the two alone, and ``METHOD-searched`` searches learning rate and epochs,
    with as many trials as tuned KD. ``grid`` has every trial of tuned KD.
    """
    cells: list[dict[str, Any]] = []
    grid: list[dict[str, Any]] = []
    for condition in conditions(study):
        own = {trial: results[trial_key(study, condition, trial)] for trial in trials(study, condition)}
        for name, candidates in _searches(study, condition, list(own)).items():
            if not candidates:
                continue
            best = max(candidates, key=lambda trial: own[trial]["validation_accuracy"])
            steps = sum(own[trial]["steps"] for trial in candidates)
            cells.append(_row(study, condition, name, best, own[best], len(candidates), steps))
        for searched in dict.fromkeys(study.method(name).searches for name in study.methods):
            grid += [
                _row(study, condition, searched, trial, own[trial], 1, own[trial]["steps"])
                for trial in _tried(own, searched)
            ]
    versions = {package: version(package) for package in ("kdfed", "torch", "numpy")}
    return {
        "study": study.name,
        "seeds": list(study.seeds),
        "versions": {**versions, "python": platform.python_version()},
        "settings": study.model_dump(mode="json"),
        "cells": cells,
        "grid": grid,
    }


def _tried(every: Iterable[Trial], method: str) -> list[Trial]:
    """Return the trials of a search."""
    return [trial for trial in every if trial.method == method and trial.rate == trial.passes == 1]


def _searches(study: StudySettings, condition: Condition, every: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return what each method chooses from."""
    temperature, weight = study.temperature, default_weight(study, condition)
    found: dict[str, list[Trial]] = {}
    for method in study.methods:
        searched = study.method(method).searches
        if searched:
            tried = _tried(every, searched)
            found[method] = tried
            if condition.labels and len(study.search.temperatures) > 1:
                found[f"{method}-temperature"] = [trial for trial in tried if trial.weight == weight]
                found[f"{method}-weight"] = [trial for trial in tried if trial.temperature == temperature]
            continue
        own = untuned(study, condition, method)
        same = [trial for trial in every if replace(trial, rate=1.0, passes=1.0) == own]
        found[method] = [trial for trial in same if trial.rate == trial.passes == 1]
        if study.search.rates and condition.factor == "":
            found[f"{method}-searched"] = same
    return found


def _row(
    study: StudySettings,
    condition: Condition,
    method: str,
    trial: Trial,
    result: Mapping[str, Any],
    trials: int,
    steps: int,
) -> dict[str, Any]:
    return {
        "dataset": study.data.source,
        **condition.row(),
        "method": method,
        "temperature": trial.temperature,
        "weight": trial.weight,
        "rate": trial.rate,
        "passes": trial.passes,
        "trials": trials,
        "search_steps": steps,
        "gain": result["after"] - result["before"],
        **result,
    }
