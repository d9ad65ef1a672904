"""How long arms must run: 1.5 times the round at which the tuned baseline is flat on the tuning seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kdfed.config import Experiment
from kdfed.config.tuning import TuningSettings
from kdfed.convergence import plateau
from kdfed.errors import RunError
from simulations.tuning.trial import UntilFlat, run_trial

TIMES = 1.5
"""The horizon, in plateaus of the baseline."""


def until_flat(experiment: Experiment) -> UntilFlat:
    """Return when the curves of an experiment count as flat."""
    settings = experiment.rounds.plateau
    return UntilFlat(settings.rounds, settings.min_delta)


def baseline_curves(experiment: Experiment) -> dict[int, tuple[float, ...]]:
    """Run the baseline until it is flat, with every tuning seed, in this process.

    Parameters
    ----------
    experiment
        Checked. Without ``tuning``, its defaults hold.

    Returns
    -------
    dict
        Accuracies on the tuning examples by round; by seed.

    Raises
    ------
    RunError
        If the baseline cannot go on.
    """
    tuning, name, curves = experiment.tuning or TuningSettings(), experiment.baseline_arm, {}
    for seed in tuning.seeds:
        result = run_trial(experiment, name, seed, tuning.longest, tuning.examples, until_flat(experiment))
        if result.curve is None:
            raise RunError(f"horizon: the baseline {name!r} failed with tuning seed {seed}: {result.reason}")
        curves[seed] = result.curve.accuracies
    return curves


def horizon_of(experiment: Experiment, curves: Mapping[int, Sequence[float]]) -> tuple[int, str]:
    """Return how many federated rounds every arm should run.

    Parameters
    ----------
    experiment
        ``rounds.plateau`` says when a curve is flat.
    curves
        Of the baseline, by tuning seed; each long enough to be flat, if it ever was.

    Returns
    -------
    rounds, why
        1.5 times the latest plateau, rounded up, and what ``rounds.why`` says of it. A curve that was not
        flat counts as flat at its end, which is said.
    """
    until, name = until_flat(experiment), experiment.baseline_arm
    flat = {seed: plateau(curve, until.rounds, until.min_delta) for seed, curve in curves.items()}
    at = {seed: len(curves[seed]) - 1 if found is None else found for seed, found in flat.items()}
    latest = max(at.values())
    seeds = ", ".join(map(str, curves))
    rising = [seed for seed, found in flat.items() if found is None]
    why = (
        f"{TIMES:g} times {latest}, the round at which the baseline {name!r} is flat on tuning seeds {seeds}"
    )
    if rising:
        why = (
            f"{TIMES:g} times {latest} rounds on tuning seeds {seeds}, after which the baseline {name!r} was "
            f"not flat yet with {', '.join(map(str, rising))}"
        )
    return math.ceil(TIMES * latest), why
