"""What is tried: candidates of an arm, drawn without replacement from the product of its values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdfed.config import Arm, Experiment
from kdfed.config.merging import undotted
from kdfed.config.tuning import TuningSettings
from kdfed.errors import ConfigError
from kdfed.seeding import numpy_generator
from simulations.experiments import build_experiment, merge

MOST_POINTS = 10**6
"""Of a space; all are put into an order."""

SHARED = ("local", "server")
"""What other arms have of the baseline, before their own values are tried."""


@dataclass(frozen=True)
class Candidate:
    """Some settings of an arm.

    Parameters
    ----------
    number
        From 0, the settings as they stand.
    changes
        Dotted keys and values; empty where nothing is changed.
    """

    number: int
    changes: Mapping[str, Any]


def with_changes(values: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment, as read from YAML, in one arm of which some keys are replaced."""
    arms = {key: undotted(arm) for key, arm in values["arms"].items()}
    return {**values, "arms": {**arms, name: merge(arms[name], changes)}}


def with_shared(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an experiment in which what one arm has of local training and server is that of all arms.

    Other arms still replace keys of it.
    """
    arm = undotted(values["arms"][name])
    shared = {key: arm.pop(key) for key in SHARED if key in arm}
    return merge({**values, "arms": {**values["arms"], name: arm}}, shared)


def alone(values: Mapping[str, Any], name: str) -> Experiment:
    """Return an experiment of one arm.

    Raises
    ------
    ConfigError
        If the arm's keys do not go together.
    """
    rest = {key: value for key, value in values.items() if key not in ("tuning", "controls", "baseline")}
    rest["rounds"] = {}  # trials have their own number
    rest["targets"] = [1.0]
    return build_experiment({**rest, "arms": {name: values["arms"][name]}})


def points(space: Mapping[str, Sequence[Any]]) -> int:
    """Return the number of points of a space."""
    return math.prod(map(len, space.values()))


def every_trial(tuning: TuningSettings) -> int:
    """Return how many trials each arm gets, those that were made by hand included."""
    return tuning.trials + max(tuning.by_hand.values(), default=0)


def order(tuning: TuningSettings, baseline: str) -> list[str]:
    """Return the arms in the order in which they are tuned: the baseline first."""
    return sorted(tuning.arms, key=lambda name: name != baseline)


def candidates(
    values: Mapping[str, Any], name: str, space: Mapping[str, Sequence[Any]], seed: int, most: int
) -> list[Candidate]:
    """Draw the candidates of an arm.

    Parameters
    ----------
    values
        The experiment, as read from YAML.
    name
        The arm.
    space
        Dotted keys, and the values of each.
    seed
        Of the order in which points are drawn.
    most
        How many candidates at most; there are fewer where the space is smaller.

    Returns
    -------
    list of Candidate
        The arm as it stands, then points whose values go together and that differ from one another.
    """
    found = [Candidate(0, {})]
    seen = {_identity(alone(values, name).arm(name))}
    for changes in _shuffled(space, seed, name):
        if len(found) >= most:
            break
        try:
            arm = alone(with_changes(values, name, changes), name).arm(name)
        except ConfigError:  # each value is right by itself: these do not go together
            continue
        if _identity(arm) not in seen:
            seen.add(_identity(arm))
            found.append(Candidate(len(found), changes))
    return found


def _identity(arm: Arm) -> str:
    return arm.model_dump_json()


def _shuffled(space: Mapping[str, Sequence[Any]], seed: int, name: str) -> Iterator[dict[str, Any]]:
    for point in numpy_generator(seed, f"tuning {name}").permutation(points(space)).tolist():
        changes = {}
        for key, values in space.items():
            point, place = divmod(point, len(values))
            changes[key] = values[place]
        yield changes
