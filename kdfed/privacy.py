"""Noise on the label counts that participants send."""

from __future__ import annotations

import numpy as np

from kdfed.errors import KdfedError


def add_laplace_noise(counts: np.ndarray, epsilon: float, generator: np.random.Generator) -> np.ndarray:
    """Return label counts with Laplace noise of scale 1 / epsilon, clipped at 0.

    One example more or less changes one count by one, so the noisy counts are epsilon-differentially
    private; clipping does not change that.

    Parameters
    ----------
    counts
        Examples per class, [C].
    epsilon
        Privacy budget, above 0; smaller is noisier.
    generator
        Source of the noise.

    Returns
    -------
    numpy.ndarray
        float64, same shape, 0 or larger.

    References
    ----------
    Dwork and Roth 2014, "The Algorithmic Foundations of Differential Privacy", theorem 3.6.
    """
    if epsilon <= 0:
        raise KdfedError(f"expected an epsilon above 0, got {epsilon}")
    noise = generator.laplace(scale=1 / epsilon, size=counts.shape)
    return np.maximum(counts + noise, 0.0)
