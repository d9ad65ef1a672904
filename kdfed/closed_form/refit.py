"""What became of one refit of a head: what a record says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdfed.closed_form.linear import Linear
from kdfed.closed_form.settings import When


@dataclass(frozen=True)
class Refit:
    """One exchange for a head in closed form.

    Parameters
    ----------
    at
        After which federated round; 0 is the start. ``before-teachers``
        and ``with-teachers``: of the common initial weights.
    head
        Which head.
    participants, examples
        Whose statistics it is solved from, and of how many examples.
    chosen, chosen_by
        The penalty or the shrinkage, and the setting that gave it, such as ``penalty: gcv``; None and empty
        where the head has neither.
    scale, scale_by
        By what the logits were multiplied, and the setting that gave it, such as ``calibrate: sums``; None
        and empty where they were not.
    features
        That the head reads; 0 where the model kept its head.
    pretrained
        Whether a backbone makes them that was trained before.
    explained
        Which share of the labels' variance the head explains, estimated from the sums for examples that were
        left out; None where the head cannot tell.
    distillation_steps
        Optimiser steps by which the model with the head was distilled into the one before; 0 where it was
        not.
    why
        Why the model kept the head that it had; empty where it was replaced.
    """

    at: When
    head: str
    participants: int = 0
    examples: int = 0
    chosen: float | None = None
    chosen_by: str = ""
    scale: float | None = None
    scale_by: str = ""
    features: int = 0
    pretrained: bool = False
    explained: float | None = None
    distillation_steps: int = 0
    why: str = ""

    @classmethod
    def of(
        cls,
        at: When,
        head: str,
        participants: int,
        examples: int,
        linear: Linear,
        calibrate: str,
        distillation_steps: int = 0,
        pretrained: bool = False,
    ) -> Refit:
        """Return what a solved head, which was calibrated so, says of itself."""
        chosen, scale = _finite(linear.chosen), _finite(linear.scale)
        chosen_by = "" if chosen is None else linear.chosen_by
        scale_by = "" if scale is None else f"calibrate: {calibrate}"
        explained = _finite(linear.explained)
        return cls(
            at,
            head,
            participants,
            examples,
            chosen,
            chosen_by,
            scale,
            scale_by,
            linear.weight_CD.shape[1],
            pretrained,
            explained,
            distillation_steps,
        )

    def __str__(self) -> str:
        """Return it as one line for a log."""
        where = self.at.replace("-", " ") if isinstance(self.at, str) else f"after round {self.at}"
        if self.why:
            return f"head {self.head} {where}: the model keeps its own, {self.why}"
        words = [f"head {self.head} {where}: {self.examples} examples of {self.participants} participants"]
        words += [f"{self.chosen_by} gives {self.chosen:.4g}"] if self.chosen is not None else []
        words += [f"{self.scale_by} multiplies logits by {self.scale:.4g}"] if self.scale is not None else []
        words += (
            [f"explains {self.explained:.0%} of the labels' variance"] if self.explained is not None else []
        )
        words += [f"distilled in {self.distillation_steps} steps"] if self.distillation_steps else []
        return ", ".join(words)


def _finite(value: float | None) -> float | None:
    """Return a number that a record can hold; a head of the user's may say anything."""
    return None if value is None or not math.isfinite(value) else float(value)
