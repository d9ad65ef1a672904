from __future__ import annotations

from kdfed.data import load_source
from kdfed.settings import DataSettings


def test_digits_are_spread_over_eight_bits() -> None:
    """scikit-learn's grey levels run from 0 to 16; 8 becomes 127.5, which rounds to the even 128."""
    data = load_source(DataSettings(source="digits"))
    assert data.inputs.shape == (1797, 1, 8, 8)
    assert data.inputs.max() == 255
    assert 128 in data.inputs
