"""Many participants of one architecture, trained or evaluated together.

A round of hundreds of participants is thousands of tiny steps, and most of a tiny step is overhead. Here the
participants of a cohort take their steps together. Three levels do the same arithmetic:

========= =====================================================================================
folded    participants become channels: images [N, B*C, H, W] and grouped convolutions, vectors
          [B, N, F] and batched products. For models made of registered layers (:mod:`.folded`).
vmap      ``torch.func.vmap`` over stacked parameters: any functional model.
loop      one participant after another: the rest, and where folding does not pay.
========= =====================================================================================

Where only the weighted mean of the weights is wanted, participants who make one step need no models of their
own (:mod:`.one_step`).

:func:`kdfed.cohort.levels.plan_for` chooses by rule, never by a stopwatch, so results do not depend on how
busy the machine is. Levels agree to float tolerance with the loop of :mod:`kdfed.train`, which is the
definition.

Legend: B participants, N examples, T steps, C channels or classes, H height, W width, F features.
"""

from __future__ import annotations

from kdfed.cohort.levels import CohortPlan, plan_for
from kdfed.cohort.predicting import predict_stack, stack_states, state_at
from kdfed.cohort.training import Trained, train_cohort

__all__ = ["CohortPlan", "Trained", "plan_for", "predict_stack", "stack_states", "state_at", "train_cohort"]
