"""Models of an arm's architecture, distilled into one of them on the server's transfer set."""

from __future__ import annotations

from collections.abc import Sequence

from kdfed.consolidate import consolidate
from kdfed.distill import VanillaConsolidation
from kdfed.models import State, load_state, state_of
from strategies.arm_config import ArmConfig


def distilled(
    config: ArmConfig, start: State, teachers: Sequence[State], method: VanillaConsolidation, seed: int
) -> tuple[State, int]:
    """Return the weights of a student that starts with some weights, and the optimiser steps taken.

    Parameters
    ----------
    config
        The arm, whose model student and teachers have.
    start, teachers
        Weights of the student before, and of the teachers.
    method
        How they are distilled.
    seed
        Derived seed of the distillation.
    """
    device, transfer = config.setup.device, config.data.transfer
    student, *models = (config.build(config.arm.model, "distilled").to(device) for _ in (start, *teachers))
    for model, state in zip((student, *models), (start, *teachers), strict=True):
        load_state(model, state)
    if config.arm.model.backbone is not None and method.augmentation:
        images, method = config.views_of(config.stored_transfer, method, seed)
        transfer = config.read(images, config.arm.model)
    result = consolidate(student, models, transfer, config.data.validation, method, seed, setup=config.setup)
    return state_of(student), result.steps
