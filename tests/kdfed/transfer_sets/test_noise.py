from __future__ import annotations

import pytest

from kdfed.transfer_sets import NoiseSet


def test_noise_is_standard_normal() -> None:
    inputs = NoiseSet().draw((3, 8, 8), 500, [], 1)
    assert inputs.shape == (500, 3, 8, 8)
    assert float(inputs.mean()) == pytest.approx(0, abs=0.02)
    assert float(inputs.std()) == pytest.approx(1, abs=0.02)
