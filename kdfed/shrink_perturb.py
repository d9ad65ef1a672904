r"""Shrink and perturb: a student that was trained already, moved towards fresh weights.

.. math:: \theta' = s\,\theta + \sigma\,\theta_0

for every weight; :math:`\theta_0` are initial weights that nothing has seen. A model that starts from
another's solution can end below one that starts from nothing. This keeps most of what it answers, and gives
back larger gradients, because its logits shrink with its weights; nothing scales them up again. s = 1 and
:math:`\sigma` = 0 change nothing; s = 0 and :math:`\sigma` = 1 start from nothing.

Buffers (BatchNorm's statistics, counters) stay as they are: a layer's inputs have another scale afterwards,
to which they adapt in training.

Deviation: none from what the source does in practice; its equation has Gaussian noise of one size, instead of
a freshly drawn network's weights, which have the sizes of each layer's initialisation.

References
----------
Ash and Adams 2020, "On Warm-Starting Neural Network Training", arXiv 1910.08475, section 4.
"""

from __future__ import annotations

from collections.abc import Collection

from kdfed.models import State


def shrunk(state: State, fresh: State, buffers: Collection[str], shrink: float, perturb: float) -> State:
    """Return a model's weights times ``shrink``, plus fresh ones times ``perturb``.

    Parameters
    ----------
    state, fresh
        Of one architecture, each [*shape]; neither is changed.
    buffers
        Which entries are no weights: they are those of ``state``, as are whole numbers.
    shrink, perturb
        s and sigma, 0 or larger.
    """
    return {
        key: value
        if key in buffers or not value.is_floating_point()
        else shrink * value + perturb * fresh[key].to(value.device, value.dtype)
        for key, value in state.items()
    }
