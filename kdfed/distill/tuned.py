"""Tuned knowledge distillation: vanilla KD, whose temperature and weight are searched on validation data.

With each pair of a temperature and a weight a student is distilled from the same start, by the loss of
:mod:`kdfed.distill.vanilla`; the student with the best validation accuracy stays. The search never sees the
test split.

References
----------
Alballa et al. 2024, "Practical Insights into Knowledge Distillation for Pre-Trained Models", arXiv
2402.14922: tuned KD by an extensive grid search. Its grid is not known; ours is in the settings.
Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", NeurIPS: the sampler ``tpe``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdfed.distill.distillation import Candidate, ConsolidationResult, Distillation
from kdfed.distill.method import KDMethod
from kdfed.distill.vanilla import VanillaConsolidation
from kdfed.ensembles import AnyEnsemble, MeanProbabilities
from kdfed.errors import KdfedError
from kdfed.models import load_state, state_of
from kdfed.settings import Distinct, PositiveInt, Share, Temperature
from kdfed.thing import Refusal


class TunedConsolidation(KDMethod):
    """Tuned KD: vanilla KD for each temperature and weight of a search; the best on validation stays."""

    method: Literal["tuned"] = "tuned"
    """The KD method."""
    ensemble: AnyEnsemble = MeanProbabilities()
    """How the teachers' outputs become one target."""
    temperatures: Annotated[
        tuple[Temperature, ...], Field(min_length=1), Distinct
    ] = (1.0, 2.0, 3.0, 5.0, 10.0)  # fmt: skip
    """Temperatures T to try, above 0."""
    weights: Annotated[
        tuple[Share, ...], Field(min_length=1), Distinct
    ] = (1.0,)  # fmt: skip
    """Weights w to try. Below 1 only with ``labels``."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """Every pair of the grid, or pairs of it that Optuna draws: at random, or by its Parzen estimator."""
    trials: PositiveInt | None = None
    """Pairs that ``random`` and ``tpe`` try, at most as many as the grid has."""

    needs_classes: ClassVar[str] = ""
    searches: ClassVar[str] = "vanilla"
    uses_validation_labels: ClassVar[bool | None] = False

    def server_labels(self) -> frozenset[str]:
        """Add those by which the best of several candidates is chosen."""
        return super().server_labels() | frozenset(["validation"] * (count(self) > 1))

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for trials where a sampler draws them."""
        yield from super().refusals(arm)
        if self.trials is not None and self.sampler == "grid":
            yield Refusal(
                ".trials",
                "has no effect with sampler 'grid', which tries every pair; name another or remove it",
                (".sampler",),
            )
        if self.trials is None and self.sampler != "grid":
            yield Refusal(
                ".trials", f"expected how many pairs {self.sampler!r} tries, got nothing", (".sampler",)
            )

    def distil(self, work: Distillation) -> ConsolidationResult:
        """Distil once for every pair of the search, each time from the same start, and keep the best."""
        start, kept = state_of(work.student), state_of(work.student)
        results: list[ConsolidationResult] = []
        runs = count(self)
        shared = {key: value for key, value in self if key in VanillaConsolidation.model_fields}
        shared["method"] = self.searches

        def run(temperature: float, weight: float) -> Candidate:
            nonlocal kept
            load_state(work.student, start)
            pair: dict[str, Any] = {**shared, "temperature": temperature, "weight": weight}
            vanilla = VanillaConsolidation.model_construct(**pair)  # checked already
            work.done, work.runs = len(results), runs
            result = vanilla.distil(work)
            if all(result.accuracy > earlier.accuracy for earlier in results):
                kept = state_of(work.student)
            results.append(result)
            return Candidate(temperature, weight, result.accuracy, result.steps)

        candidates = search(self, work.seed, run)
        load_state(work.student, kept)
        winner = results[candidates.index(best(candidates))]
        return replace(winner, steps=sum(result.steps for result in results), trials=tuple(candidates))


def grid(settings: TunedConsolidation) -> list[tuple[float, float]]:
    """Return every pair (temperature, weight); with weight 0, where the temperature has no effect, one."""
    pairs = [(t, w) for w in settings.weights for t in settings.temperatures]
    return [pair for pair in pairs if pair[1] > 0 or pair[0] == settings.temperatures[0]]


def count(settings: TunedConsolidation) -> int:
    """Return how many pairs a search tries."""
    pairs = len(grid(settings))
    return min(settings.trials or pairs, pairs)


def search(
    settings: TunedConsolidation, seed: int, run: Callable[[float, float], Candidate]
) -> list[Candidate]:
    """Try the pairs of a search.

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
    list of Candidate
        In the order in which they were run; :func:`best` picks the winner.

    Raises
    ------
    KdfedError
        If the sampler needs Optuna, and it is not installed.
    """
    candidates: list[Candidate] = []
    if settings.sampler == "grid":
        return [run(*pair) for pair in grid(settings)]
    suggestions = _suggested(settings, seed, candidates)
    for pair in suggestions:
        candidates.append(run(*pair))
    return candidates


def best(candidates: list[Candidate]) -> Candidate:
    """Return the candidate with the best accuracy, the first of several."""
    return max(candidates, key=lambda candidate: candidate.accuracy)


def _suggested(
    settings: TunedConsolidation, seed: int, candidates: list[Candidate]
) -> Iterator[tuple[float, float]]:
    """Yield different pairs of the grid; what came of the last one is the last of ``candidates``."""
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
            known[pair] = candidates[-1].accuracy
        study.tell(asked, known[pair])
    for pair in pairs:  # a sampler that goes round in circles
        if len(known) < wanted and pair not in known:
            yield pair
            known[pair] = candidates[-1].accuracy
