"""``start: recipe``: what kdfed advises for an experiment, spelled out as keys of the arm.

The rule looks at what is known before any exchange. It was chosen on tuning seeds (docs/results.md), and the
record tells what it chose and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdfed.config.experiment import Arm, Experiment
from kdfed.config.merging import merge, undotted

RECIPE = "recipe"

RATE = 0.5
"""Local rate of the rounds after such a start, as a share of ``local.lr``: a cold arm's first rounds go
further than those of a model that knows most already."""

RATE_OF_HEAD = 0.04
"""The same where the solved head itself is trained on: the rate of a cold arm destroys it in a round."""


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
    head: dict[str, Any] = {"head": "ridge", **calibrate, "at": [0]}
    from_files = arm.teachers.from_ is not None
    if arm.model.backbone is not None and (arm.model.trainable == "head" or not from_files):
        why = (
            "nothing but a linear head is trained on a frozen backbone, and a head in closed form is exact: "
            "nothing is distilled"
            if arm.model.trainable == "head"
            else "the head is solved for on pre-trained features, and rounds at a low rate go on from there; "
            "a student of that model would be behind it: nothing is distilled"
        )
        return {"start": "random", "closed-form": head, "local": {"lr": arm.local.lr * RATE_OF_HEAD}}, why
    why = (
        "teachers exist in files: they are distilled into a student, whose head is solved for, and the model "
        "with that head into the student again"
        if from_files
        else "layers below the head are trained too: the head of the initial weights is solved for, and the "
        "model with that head is distilled into these weights; no participant trains a teacher"
    )
    keys = {
        "start": "consolidated" if from_files else "random",
        "closed-form": {**head, "distillation": {}},
        "local": {"lr": arm.local.lr * RATE},
    }
    return keys, why
