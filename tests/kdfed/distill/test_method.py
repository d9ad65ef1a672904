"""What all KD methods have in common."""

from __future__ import annotations

import pytest

from kdfed.distill import METHODS, KDMethod
from kdfed.errors import KdfedError


def test_the_registry_names_each_method_as_its_settings_do() -> None:
    assert {name: kind().method for name, kind in METHODS.members.items()} == {
        name: name for name in ("vanilla", "tuned", "mutual", "partitioned")
    }


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(KdfedError, match=r"expected one of vanilla, .*, got 'vanila'; did you mean 'v"):
        METHODS.find("vanila")


def test_a_method_that_does_not_say_how_it_distils_is_none() -> None:
    """It can never train like another in its stead."""

    class Reverse(KDMethod):
        method: str = "reverse"

    with pytest.raises(TypeError, match=r"abstract method '?distil"):
        Reverse()
