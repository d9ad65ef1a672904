r"""What a participant may say: numbers and weights can be finite and absurd all the same.

Whoever says more than this is left out and named, before anything is summed. Weights x that were trained from
:math:`x_0` must keep to

.. math:: \lVert x - x_0 \rVert \le b \max(1, \lVert x_0 \rVert)

in float64, over all parameters together, with b of ``server.update-bound``. Floating-point buffers must keep
to the same with :math:`b^2`, but at least with :data:`BUFFER_BOUND`: a running variance is a square, and of
layers whose inputs are large it is far above the 1 that it starts from. Integers (BatchNorm's counters) are
not bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

LARGEST = 1e30
"""The largest size of a number among metrics and initial weights: sums of such numbers, times numbers of
examples, stay finite in float32."""

MOST_NUMBERS = 100_000
"""The most numbers in all metrics of a result."""

MOST_OF_A_KEY = 200
"""Characters of a metric's name."""

UPDATE_BOUND = 100.0
"""The default of ``server.update-bound``."""

BUFFER_BOUND = 1e8
"""The least bound of buffers: inputs with a standard deviation of 10,000 are nobody's lie."""

_SAFE = 0.99  # a quick norm in float32 is off by less


@dataclass(frozen=True)
class Limits:
    """How much participants may say.

    Parameters
    ----------
    examples
        The most examples of one participant, 1 or larger.
    update_bound
        b, above 0.
    buffers
        Which arrays of the model are buffers.
    """

    examples: int = 10_000_000
    update_bound: float = UPDATE_BOUND
    buffers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LabelCountLimits:
    """What label counts must be like.

    Parameters
    ----------
    classes
        How many counts there are.
    scale
        Of the Laplace noise that was added to each, in examples; 0 for exact counts.
    """

    classes: int
    scale: float = 0.0

    def problem_with(self, counts: object, examples: int) -> str | None:
        r"""Say what is wrong with the label counts of so many examples; None when all is well.

        Noise of scale s lies within 40 s, and the sum of that of C counts within :math:`40 s \sqrt{C}`: not
        one in a billion does not.
        """
        if not isinstance(counts, list) or len(counts) != self.classes:
            held = f"{len(counts)} of them" if isinstance(counts, list) else f"{counts!r:.40}"
            return f"expected label counts of {self.classes} classes, got {held}"
        slack = 40 * self.scale
        for count in counts:
            if not -slack <= count <= examples + slack or (not self.scale and count != int(count)):
                kind = f"of noise of scale {self.scale:g}" if self.scale else "as a whole number"
                return f"expected each label count from 0 to {examples} examples, {kind}, got {count:g}"
        total = float(sum(counts))
        if total > examples + slack * self.classes**0.5:
            return f"expected label counts of {examples} examples, got {total:g} in all"
        return None


def most_steps(epochs: int, batch_size: int, examples: int) -> int:
    """Return the optimiser steps of a training, at most: BatchNorm has no last batch of one."""
    return epochs * -(-examples // batch_size)


# ----------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class _Group:
    """Arrays that are bounded together.

    Parameters
    ----------
    keys
        Which.
    size
        The norm of what was sent.
    most
        The largest norm of a difference.
    """

    keys: tuple[str, ...]
    size: float
    most: float

    @property
    def quick(self) -> float:
        """Arrays whose own norm is at most this need no closer look, by the triangle inequality."""
        return _SAFE * (self.most - self.size)


class Reach:
    """How far a participant's weights may lie from those that it was sent.

    Parameters
    ----------
    sent
        The weights that it trained from.
    limits
        The bound, and which arrays are buffers.
    """

    def __init__(self, sent: Mapping[str, np.ndarray], limits: Limits) -> None:
        self.limits = limits
        self._sent = sent
        inexact = [key for key, array in sent.items() if array.dtype.kind in "fc"]
        kinds = (
            ([key for key in inexact if key not in limits.buffers], limits.update_bound),
            ([key for key in inexact if key in limits.buffers], max(limits.update_bound**2, BUFFER_BOUND)),
        )
        self._groups = []
        for keys, bound in kinds:
            size = _norm(sent[key] for key in keys)
            self._groups.append(_Group(tuple(keys), size, bound * max(1.0, size)))

    def quick(self) -> list[tuple[tuple[str, ...], float]]:
        """Return keys with the norm up to which those arrays together are surely near enough."""
        return [(group.keys, group.quick) for group in self._groups]

    def problem_with(self, arrays: Mapping[str, np.ndarray], times: float = 1.0) -> str | None:
        """Say whether arrays lie too far from those that were sent; None when they do not.

        Parameters
        ----------
        arrays
            Finite, with the keys and the numbers of elements of those that were sent.
        times
            By what the bound is multiplied, 1 or larger.
        """
        for group in self._groups:
            if np.sqrt(sum(_quick_square(arrays[key]) for key in group.keys)) <= group.quick:
                continue
            most = times * group.most
            far = _norm(
                np.subtract(arrays[key].ravel(), self._sent[key].ravel(), dtype=_wide(arrays[key]))
                for key in group.keys
            )
            if not far <= most:
                what = "buffers" if group.keys[0] in self.limits.buffers else "weights"
                return (
                    f"{what} too far from where they started: the difference has norm {far:.3g}, expected at "
                    f"most {most:.3g} (server.update-bound)"
                )
        return None


def numpy_of(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return a model's arrays for NumPy, on the CPU; they share memory with what is there already."""
    return {key: value.detach().cpu().numpy() for key, value in state.items()}


def _norm(arrays: Iterable[np.ndarray]) -> float:
    """Return the norm of arrays together; in float64, infinite where that overflows."""
    with np.errstate(over="ignore"):
        return float(np.sqrt(sum(_square(array.astype(_wide(array), copy=False)) for array in arrays)))


def _wide(array: np.ndarray) -> str:
    return "complex128" if array.dtype.kind == "c" else "float64"


def _quick_square(array: np.ndarray) -> float:
    """Return the square of an array's norm, float32 as it is."""
    return _square(array if array.dtype.itemsize >= 4 else array.astype("float32"))


def _square(array: np.ndarray) -> float:
    flat = array.ravel()
    return float(np.vdot(flat, flat).real)
