"""Tuned knowledge distillation: vanilla KD, whose temperature and weight are searched on validation data.

Every trial distils a student of its own from the same start, by the loss of :mod:`kdfed.distill.vanilla`; the
student with the best validation accuracy stays. The search never sees the test split.

References
----------
Alballa et al. 2024, "Practical Insights into Knowledge Distillation for Pre-Trained Models", arXiv
2402.14922: tuned KD by an extensive grid search. Its grid is not known; ours is in the settings.
Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", NeurIPS: the sampler ``tpe``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdfed.config import TunedConsolidation
from kdfed.errors import KdfedError


@dataclass(frozen=True)
class Trial:
    """One pair of the search.

    Parameters
    ----------
    temperature, weight
        What was tried.
    accuracy
        The student's validation accuracy in [0, 1].
    steps
        Optimiser steps that it took.
    """

    temperature: float
    weight: float
    accuracy: float
    steps: int


def grid(settings: TunedConsolidation) -> list[tuple[float, float]]:
    """Return every pair (temperature, weight); with weight 0, where the temperature has no effect, one."""
    pairs = [(t, w) for w in settings.weights for t in settings.temperatures]
    return [pair for pair in pairs if pair[1] > 0 or pair[0] == settings.temperatures[0]]


def count(settings: TunedConsolidation) -> int:
    """Return how many trials a search has."""
    pairs = len(grid(settings))
    return min(settings.trials or pairs, pairs)


def search(settings: TunedConsolidation, seed: int, run: Callable[[float, float], Trial]) -> list[Trial]:
    """Run the trials of a search.

    Parameters
    ----------
    settings
        The grid and the sampler.
    seed
        Derived seed of the sampler.
    run
        Distils with (temperature, weight). Called once a pair.

    Returns
    -------
    list of Trial
        In the order in which they were run; :func:`best` picks the winner.

    Raises
    ------
    KdfedError
        If the sampler needs Optuna, and it is not installed.
    """
    trials: list[Trial] = []
    if settings.sampler == "grid":
        return [run(*pair) for pair in grid(settings)]
    suggestions = _suggested(settings, seed, trials)
    for pair in suggestions:
        trials.append(run(*pair))
    return trials


def best(trials: list[Trial]) -> Trial:
    """Return the trial with the best accuracy, the first of several."""
    return max(trials, key=lambda trial: trial.accuracy)


def _suggested(settings: TunedConsolidation, seed: int, trials: list[Trial]) -> Iterator[tuple[float, float]]:
    """Yield different pairs of the grid; what came of the last one is the last of ``trials``."""
    if importlib.util.find_spec("optuna") is None:
        raise KdfedError(
            f"sampler {settings.sampler!r} needs Optuna: install kdfed[sim], or use sampler: grid"
        )
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    study = optuna.create_study(direction="maximize", sampler=kinds[settings.sampler](seed=seed % 2**32))
    pairs = grid(settings)
    wanted = count(settings)
    known: dict[tuple[float, float], float] = {}
    for _ in range(100 * wanted):
        if len(known) == wanted:
            return
        asked = study.ask()
        temperature = asked.suggest_categorical("temperature", settings.temperatures)
        weight = asked.suggest_categorical("weight", settings.weights)
        pair = (temperature if weight > 0 else settings.temperatures[0], weight)
        if pair not in known:
            yield pair
            known[pair] = trials[-1].accuracy
        study.tell(asked, known[pair])
    for pair in pairs:  # a sampler that goes round in circles
        if len(known) < wanted and pair not in known:
            yield pair
            known[pair] = trials[-1].accuracy
