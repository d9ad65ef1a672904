"""Running a study: what the cache does not hold, in parallel processes; then study.json and the page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kdfed.data import prepare
from kdfed.errors import ConfigError, DataError, Mistake, RunError, RunFolderError
from kdfed.records import write_atomically
from simulations.engines.process_state import preserved
from simulations.study.design import (
    Condition,
    Trial,
    conditions,
    generated_key,
    models_key,
    trial_key,
    trials,
)
from simulations.study.jobs import (
    check_teachers,
    distil,
    generate_at,
    has_generated,
    has_models,
    partition_at,
    pretrain,
    read_trial,
    transfer_of,
    trial_file,
)
from simulations.study.report import render
from simulations.study.rows import rows_of
from simulations.study.settings import StudySettings, read_study
from simulations.workers import check_folder, cores, runner


@dataclass(frozen=True)
class RemainingWork:
    """What a study still has to do.

    Parameters
    ----------
    trial_keys
        Cache keys of all trials of the study.
    models
        A condition for each group of models that must be trained first.
    generated
        A condition for each transfer set that must be generated before the trials.
    trials
        What the cache lacks, with the condition of each.
    """

    trial_keys: set[str]
    models: list[Condition]
    generated: list[Condition]
    trials: list[tuple[Condition, Trial]]


def remaining_work(study: StudySettings, cache: Path) -> RemainingWork:
    """Look up what the cache lacks; two conditions that share models or trials count once."""
    keys: set[str] = set()
    missing: list[tuple[Condition, Trial]] = []
    models: dict[str, Condition] = {}
    generated: dict[str, Condition] = {}
    for condition in conditions(study):
        for trial in trials(study, condition):
            key = trial_key(study, condition, trial)
            if key in keys:
                continue
            keys.add(key)
            if read_trial(cache, key) is None:
                missing.append((condition, trial))
                models.setdefault(models_key(study, condition), condition)
                if study.transfer_set(condition.transfer).needs_teachers:
                    generated.setdefault(generated_key(study, condition), condition)
    return RemainingWork(
        keys,
        [condition for condition in models.values() if not has_models(study, condition, cache)],
        [condition for condition in generated.values() if not has_generated(study, condition, cache)],
        missing,
    )


@preserved()
def run_study(
    study: StudySettings, out: Path, *, workers: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Run what is missing, and write ``study.json`` and ``study.html``.

    Parameters
    ----------
    study
        Checked already.
    out
        The folder; its ``cache`` may hold results of an earlier run, or of a study that shares cells.
    workers
        Processes. Default: the cores that are there.
    console
        Where to print how much there is to do, and how far it is.

    Returns
    -------
    dict
        What ``study.json`` holds.

    Raises
    ------
    ConfigError
        If the data do not allow a cell, or the folder cannot be written to; nothing was run then.
    RunError
        If a trial failed, a worker died, or the disk is full. What is in the cache stays.
    """
    console = console or Console(quiet=True)
    torch.set_num_threads(1)  # as in the workers: two threads give other bits than one
    workers = workers or cores()
    cache = out / "cache"
    check_folder(cache)
    _check_data(study, cache)
    todo = remaining_work(study, cache)
    console.print(
        f"{study.name}: {len(todo.trial_keys)} trials, {len(todo.trials)} of them to run, "
        f"{len(todo.models)} groups of models to train first"
    )
    try:
        if todo.trials:
            _run(study, cache, todo, workers, console)
        results = {key: _result(cache, key) for key in todo.trial_keys}
        summary = rows_of(study, results)
        write_atomically(out / "study.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
        write_atomically(out / "study.html", render(study, summary).encode(errors="backslashreplace"))
    except RunFolderError as error:  # it could be written to when the study began
        raise RunError(str(error)) from error
    return summary


def _result(cache: Path, key: str) -> dict[str, Any]:
    result = read_trial(cache, key)
    if result is None:
        raise RunError(
            f"{trial_file(cache, key)}: expected the result of a trial that has just been run; does another "
            "program write there?"
        )
    return result


def _check_data(study: StudySettings, cache: Path) -> None:
    """Ask for the data, every partition and transfer set once, so that nothing is refused after an hour.

    A generated one needs trained teachers; of these it is asked only whether its loss can read them.
    """
    mistakes: dict[str, Mistake] = {}
    try:
        prepare(study.data)
    except DataError as error:
        raise ConfigError(study.name, [Mistake(error.key, str(error))]) from error
    for condition in conditions(study):
        try:
            if study.transfer_set(condition.transfer).needs_teachers:
                partition_at(study, condition)
                check_teachers(study, condition)
            else:
                transfer_of(study, condition, cache)
        except DataError as error:
            key = error.key or f"distributions.{condition.distribution}"
            mistakes.setdefault(f"{key} {error}", Mistake(key, f"{error} ({condition.distribution})"))
    if mistakes:
        raise ConfigError(study.name, list(mistakes.values()))


def _run(study: StudySettings, cache: Path, todo: RemainingWork, workers: int, console: Console) -> None:
    text = study.model_dump_json(by_alias=True)
    with runner(workers, console, _begin, text, str(cache)) as jobs:
        models, generated = ([(condition,) for condition in one] for one in (todo.models, todo.generated))
        jobs.run("models", _pretrain, models, total=len(models))
        if generated:
            jobs.run("generated transfer sets", _generate, generated, total=len(generated))
        if todo.trials:
            _estimate(study, cache, todo.trials, workers, jobs.progress.console)
        jobs.run("trials", _distil, todo.trials, total=len(todo.trials))


def _estimate(
    study: StudySettings,
    cache: Path,
    missing: Sequence[tuple[Condition, Trial]],
    workers: int,
    console: Console,
) -> None:
    """Run some trials, and say how long the rest may take. The first one also imports and warms up."""
    seconds, effort = 0.0, 0.0
    for count, index in enumerate(sorted({0, len(missing) // 3, 2 * len(missing) // 3, len(missing) - 1})):
        condition, trial = missing[index]
        began = time.monotonic()
        distil(study, condition, trial, cache)
        if count > 0 or len(missing) == 1:
            seconds += time.monotonic() - began
            effort += _effort(study, condition, trial)
    everything = sum(_effort(study, condition, trial) for condition, trial in missing)
    console.print(f"about {seconds / effort * everything / workers / 60:.1f} minutes for the trials")


def _effort(study: StudySettings, condition: Condition, trial: Trial) -> float:
    """Return how much a trial costs against others: passes times examples times models trained."""
    models = condition.teachers + 1 if study.method(trial.method).needs_teachers else 1
    return trial.passes * models * (condition.images or len(prepare(study.data).splits.transfer))


# ----------------------------------------------------------------------------- in a worker

_STUDY: list[Any] = []


def _begin(text: str, cache: str) -> None:
    torch.set_num_threads(1)
    _STUDY[:] = [read_study(text), Path(cache)]


def _pretrain(condition: Condition) -> None:
    study, cache = _STUDY
    pretrain(study, condition, cache)


def _generate(condition: Condition) -> None:
    study, cache = _STUDY
    generate_at(study, condition, cache)


def _distil(condition: Condition, trial: Trial) -> None:
    study, cache = _STUDY
    distil(study, condition, trial, cache)
