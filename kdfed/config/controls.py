"""The arms that an experiment's ``controls`` add, for whoever doubts the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kdfed.closed_form import BEFORE, WITH, ClosedFormSettings
from kdfed.config.experiment import CLOSED_FORM, Arm, Control, Experiment, sampled_count
from kdfed.config.merging import merge, undotted
from kdfed.errors import Mistake

_SECTIONS = ("model", "local", "server")

_AVERAGED = {"upload": "weights", "model": None, "label-counts": {"send": False, "epsilon": None}}
"""What teachers must be like to be averaged, whatever an ensemble asks of them."""


def with_controls(experiment: Experiment) -> Experiment:
    """Return an experiment whose ``arms`` hold its controls; an arm of a control's name stays as it is.

    Parameters
    ----------
    experiment
        Checked; its controls are possible (:func:`impossible_controls`).
    """
    added = {name: _control(experiment, name) for name in experiment.controls if name not in experiment.arms}
    if not added:
        return experiment
    copy = experiment.model_copy(update={"arms": {**experiment.arms, **added}})
    copy._folder = experiment.folder
    return copy


def with_horizon(experiment: Experiment, rounds: int, why: str) -> Experiment:
    """Return an experiment with a horizon that was found; ``longer`` spends its passes within it.

    Parameters
    ----------
    experiment
        Its controls are among its arms, and its horizon is not known.
    rounds, why
        Federated rounds of every arm, and where the number comes from.
    """
    found = experiment.with_horizon(rounds, why)
    if "longer" not in experiment.controls or taught_arm(experiment) is None:
        return found
    if experiment.arms["longer"] != _control(experiment, "longer"):
        return found  # it is the user's
    copy = found.model_copy(update={"arms": {**found.arms, "longer": _control(found, "longer")}})
    copy._folder = experiment.folder
    return copy


def impossible_controls(experiment: Experiment) -> Iterator[Mistake]:
    """Yield what is wrong with an experiment's controls."""
    taught = taught_arm(experiment)
    if taught is not None and experiment.arm(taught).teachers.from_ is None:
        return
    for index, name in enumerate(experiment.controls):
        if taught is not None:
            if name == "longer" and name not in experiment.arms:
                yield Mistake(
                    f"controls.{index}",
                    f"expected teachers that are trained, whose steps {name!r} makes too; teachers.from of "
                    f"arm {taught!r} names files, and nobody knows theirs: remove it",
                )
            continue
        if name != "server" and name not in experiment.arms:
            yield Mistake(
                f"controls.{index}",
                f"expected an arm with start: consolidated, whose teachers {name!r} is about, got none; "
                "remove it",
            )


def unlike_controls(experiment: Experiment) -> Iterator[Mistake]:
    """Yield arms of a control's name that are something else, and would be shown as that control."""
    for name in experiment.controls:
        if name not in experiment.arms:
            continue
        arm, other = experiment.arm(name), f"controls shows this arm as {name!r}; rename it"
        start = experiment.arm(experiment.baseline_arm).start if name == "longer" else name
        if name == experiment.baseline_arm:
            yield Mistake("baseline", f"expected an arm that is no control, got {name!r}; rename it")
        elif arm.start != start:
            yield Mistake(f"arms.{name}.start", f"expected {start!r}, got {arm.start!r}: {other}")
        elif name == "longer" and 0 in (arm.local.extra.epochs, arm.local.extra.rounds):
            yield Mistake(
                "arms.longer.local.extra",
                f"expected the epochs and rounds in which it makes the teachers' steps, got none: {other}",
            )


def taught_arm(experiment: Experiment) -> str | None:
    """Return the first arm that is consolidated."""
    arms = (name for name in experiment.arms if name not in experiment.controls)
    return next((name for name in arms if experiment.arm(name).start == "consolidated"), None)


def _control(experiment: Experiment, name: Control) -> dict[str, Any]:
    """Return the keys of a control: those of the arm that it is about, and what makes the difference.

    Other starts are trained on as the consolidated one is: a rate that suits random weights can destroy them.
    """
    taught = taught_arm(experiment)
    about = experiment.baseline_arm if name == "longer" or taught is None else taught
    keys = undotted(experiment.arms[about])
    kept = {key: value for key, value in keys.items() if key in _SECTIONS}
    arm = experiment.arm(about)
    if arm.closed_form is not None:
        kept[CLOSED_FORM] = _refits(arm, arm.closed_form, name)
    if name == "server":
        return {**kept, "start": "server"}
    assert taught is not None, "look at impossible_controls first"
    if name == "averaged":
        return {**kept, "start": "averaged", "teachers": {**keys.get("teachers", {}), **_AVERAGED}}
    epochs, rounds = _extra(experiment.arm(taught), experiment)
    extra = {"local": {"extra": {"epochs": epochs, "rounds": rounds}}}
    return merge({**kept, "start": "random"}, extra, experiment.families)


def _refits(arm: Arm, settings: ClosedFormSettings, name: Control) -> dict[str, Any] | None:
    """Return the heads in closed form of a control of an arm: all that its start can have.

    ``server`` is the server's model alone at its start, before any exchange.
    """
    left_out = {0, BEFORE, WITH} if name == "server" else {BEFORE, WITH}
    if name == "averaged" and arm.teachers.start_common:
        left_out = set()
    at = [when for when in settings.at if when not in left_out]
    if not at:
        return None
    values: dict[str, Any] = settings.model_dump(mode="json", by_alias=True)
    return {**values, "at": at, "teacher": False}


def _extra(taught: Arm, experiment: Experiment) -> tuple[int, int]:
    """Return how many passes more, in how many rounds, make as many local steps as the teachers.

    One pass more a round, unless that takes more rounds than there are.
    """
    baseline, participants = experiment.arm(experiment.baseline_arm), taught.partition.participants
    count = participants if taught.teachers.count == "all" else taught.teachers.count
    passes = count * taught.teachers.epochs * baseline.local.batch_size / taught.teachers.batch_size
    sampled = sampled_count(baseline)
    horizon = experiment.rounds.horizon
    most = math.inf if horizon == "auto" else max(1, horizon)
    epochs = max(1, math.ceil(passes / (sampled * most)))
    return epochs, max(1, round(passes / (sampled * epochs)))
