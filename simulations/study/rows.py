"""From trials to cells: the winner of a search is chosen here, on validation accuracy alone."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from simulations.study.cells import Point, Trial, default_weight, points, trial_key, trials
from simulations.study.settings import StudySettings

Results = Mapping[str, Mapping[str, Any]]
"""Cache key of a trial -> its result."""


def rows_of(study: StudySettings, results: Results) -> dict[str, Any]:
    """Return what ``study.json`` holds.

    ``cells`` has one row a point and method. Beside the study's methods, ``tuned-temperature`` and
    ``tuned-weight`` search one of the two alone, and ``METHOD-searched`` searches learning rate and epochs,
    with as many trials as tuned KD. ``grid`` has every trial of tuned KD.
    """
    cells: list[dict[str, Any]] = []
    grid: list[dict[str, Any]] = []
    for point in points(study):
        own = {trial: results[trial_key(study, point, trial)] for trial in trials(study, point)}
        tried = [trial for trial in own if trial.method == "vanilla" and trial.rate == trial.passes == 1]
        for name, candidates in _searches(study, point, list(own), tried).items():
            if not candidates:
                continue
            best = max(candidates, key=lambda trial: own[trial]["validation_accuracy"])
            steps = sum(own[trial]["steps"] for trial in candidates)
            cells.append(_row(study, point, name, best, own[best], len(candidates), steps))
        if "tuned" in study.methods:
            grid += [
                _row(study, point, "vanilla", trial, own[trial], 1, own[trial]["steps"]) for trial in tried
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


def _searches(
    study: StudySettings, point: Point, every: Sequence[Trial], tried: Sequence[Trial]
) -> dict[str, list[Trial]]:
    """Return what each method chooses from."""
    temperature, weight = study.temperature, default_weight(study, point)
    found: dict[str, list[Trial]] = {}
    for method in study.methods:
        if method == "tuned":
            found["tuned"] = list(tried)
            if point.labels and len(study.search.temperatures) > 1:
                found["tuned-temperature"] = [trial for trial in tried if trial.weight == weight]
                found["tuned-weight"] = [trial for trial in tried if trial.temperature == temperature]
            continue
        same = [
            trial
            for trial in every
            if trial.method == method
            and (method == "mutual" or (trial.temperature == temperature and trial.weight == weight))
        ]
        found[method] = [trial for trial in same if trial.rate == trial.passes == 1]
        if study.search.rates and point.factor == "":
            found[f"{method}-searched"] = same
    return found


def _row(
    study: StudySettings,
    point: Point,
    method: str,
    trial: Trial,
    result: Mapping[str, Any],
    trials: int,
    steps: int,
) -> dict[str, Any]:
    return {
        "dataset": study.data.source,
        **point.row(),
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
