from __future__ import annotations

import pytest

from kdfed.paying import LEAST_EXPLAINED, LEAST_FEATURES, after_exchange, before_exchange


@pytest.mark.parametrize(
    ("features", "pretrained", "pays"),
    [(LEAST_FEATURES, False, True), (LEAST_FEATURES - 1, False, False), (1, True, True)],
)
def test_before_the_exchange_the_features_decide_unless_they_are_pretrained(features, pretrained, pays):
    advice = before_exchange(features, pretrained=pretrained)
    assert advice.pays is pays
    assert pretrained or str(features) in advice.why


@pytest.mark.parametrize(("explained", "pays"), [(LEAST_EXPLAINED, True), (0.0999, False), (-3.0, False)])
def test_after_the_exchange_what_the_head_explains_decides(explained, pays):
    advice = after_exchange(explained)
    assert advice.pays is pays
    assert f"{explained:.0%}" in advice.why
