"""``start: recipe``: what kdfed advises for an experiment, spelled out as keys of the arm.

The rule looks at what is known before any exchange. It was chosen on tuning seeds (docs/results.md), and the
record tells what it chose and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdfed.closed_form import WITH
from kdfed.config.experiment import Arm, Experiment
from kdfed.config.merging import merge, undotted

RECIPE = "recipe"

RATE = 0.04
"""Local rate of the rounds after a solved head, as a share of ``local.lr``: a cold arm's own rate destroys
such a start in a round."""


def with_recipes(experiment: Experiment) -> Experiment:
    """Return an experiment whose arms with ``start: recipe`` say what that is.

    What such an arm says itself stays, over what the recipe would say.
    """
    chosen = [name for name, keys in experiment.arms.items() if undotted(keys).get("start") == RECIPE]
    if not chosen:
        return experiment
    arms, recipes = dict(experiment.arms), dict(experiment.recipes)
    for name in chosen:
        own = {key: value for key, value in undotted(arms[name]).items() if key != "start"}
        keys, recipes[name] = recipe_of(experiment.arm_of({**own, "start": "consolidated"}))
        arms[name] = merge(keys, own, experiment.families)
    copy = experiment.model_copy(update={"arms": arms, "recipes": recipes})
    return copy if experiment.folder is None else copy.found_in(experiment.folder)


def recipe_of(arm: Arm) -> tuple[Mapping[str, Any], str]:
    """Return what an arm starts from by the recipe, and why.

    Parameters
    ----------
    arm
        All keys resolved, as if it were consolidated.

    Returns
    -------
    tuple of mapping and str
        Keys of an arm; and the reason, for the record.
    """
    calibrate = {} if arm.data.task == "regression" else {"calibrate": "sums"}
    head: dict[str, Any] = {"head": "ridge", **calibrate}
    rounds = {"lr": arm.local.lr * RATE}
    if arm.model.backbone is not None and arm.model.trainable == "head":
        why = (
            "nothing but a linear head is trained on a frozen backbone, and a head in closed form is exact: "
            "nothing is distilled"
        )
        return {"start": "random", "closed-form": {**head, "at": [0]}, "local": rounds}, why
    together = arm.teachers.start_common and arm.teachers.model is None and arm.rounds.horizon != 0
    why = (
        "layers below the head are trained too: teachers are distilled into a student, whose head is solved"
        if together
        else "teachers do not start from the common initial weights, so only the student's head is solved for"
    )
    at = WITH if together else 0
    return {"start": "consolidated", "closed-form": {**head, "at": [at]}, "local": rounds}, why
