r"""Fewer features: a matrix P [d, D] that everybody computes alike, from a seed that the server sends.

A head is fitted on :math:`P f` and given back as one on f: with weights V [C, d] it is
:math:`V P` [C, D], so the model stays a plain linear layer.

``random``
    Entries :math:`\pm 1 / \sqrt d`, fair coins of the seed. Scalar products of features are kept on average.
``pool``
    The means of d groups of consecutive features, whose sizes differ by one at most. Of the flattened
    activations of a convolution, [channels, height, width], these are neighbours of one channel first.

Shape suffixes: D features, d features that are kept.

References
----------
Achlioptas 2003, "Database-friendly random projections: Johnson-Lindenstrauss with binary coins", section 1.2.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch

from kdfed.seeding import numpy_generator

Projection: TypeAlias = Literal["random", "pool"]
"""How features become fewer."""


def projection_matrix(dims: int, kept: int, kind: Projection, seed: int) -> torch.Tensor:
    """Return P, float64 [d, D]: the same bits on every machine.

    Parameters
    ----------
    dims
        D.
    kept
        d, from 1 to D.
    kind
        See the module.
    seed
        Of the coins; ``pool`` does not look at it.
    """
    if kind == "pool":
        matrix = torch.zeros(kept, dims, dtype=torch.float64)
        for row, group in enumerate(torch.tensor_split(torch.arange(dims), kept)):
            matrix[row, group] = 1 / len(group)
        return matrix
    coins = torch.from_numpy(numpy_generator(seed, "projection").integers(0, 2, (kept, dims)))
    return (2 * coins.double() - 1) / math.sqrt(kept)
