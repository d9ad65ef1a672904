from __future__ import annotations

import numpy as np
import pytest

from kdfed.errors import KdfedError
from kdfed.privacy import add_laplace_noise


def test_laplace_noise_has_the_scale_one_over_epsilon() -> None:
    """A Laplace distribution of scale b has mean absolute value b."""
    counts = np.full(20_000, 1000)
    noisy = add_laplace_noise(counts, 0.25, np.random.default_rng(0))
    assert np.abs(noisy - counts).mean() == pytest.approx(4.0, rel=0.03)
    assert noisy.mean() == pytest.approx(1000.0, abs=0.2)


def test_noisy_counts_are_never_negative_and_repeat_with_the_seed() -> None:
    counts = np.array([0, 1, 2, 0, 0, 5])
    first, second = (add_laplace_noise(counts, 0.1, np.random.default_rng(3)) for _ in range(2))
    assert first.min() >= 0
    assert first.tolist() == second.tolist()


def test_an_epsilon_of_zero_is_refused() -> None:
    with pytest.raises(KdfedError, match="epsilon above 0, got 0"):
        add_laplace_noise(np.ones(2), 0, np.random.default_rng(0))
