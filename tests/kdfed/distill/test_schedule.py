from __future__ import annotations

import pytest

from kdfed.distill.schedule import cosine


def test_the_cosine_starts_at_one_halves_halfway_and_ends_at_zero() -> None:
    assert [cosine(0.0), cosine(0.5), cosine(1.0)] == pytest.approx([1.0, 0.5, 0.0])
