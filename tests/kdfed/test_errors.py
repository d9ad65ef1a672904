"""Text of others, before it is printed or kept."""

from __future__ import annotations

import pytest

from kdfed.errors import LONGEST_TEXT, clean_text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("out of memory", "out of memory"),
        ("two\nlines\tand\x00more", "two lines and more"),
        ("half \ud800 a character", "half ? a character"),
        ("\x1b[31mred", "[31mred"),
        ("", "no reason given"),
        (" \n ", "no reason given"),
        (7, "7"),
        ("x" * LONGEST_TEXT, "x" * LONGEST_TEXT),
        ("x" * (LONGEST_TEXT + 1), "x" * LONGEST_TEXT + "... (501 characters)"),
        ("\n" * 9999 + "x", "... (10000 characters)"),
    ],
)
def test_what_others_say_becomes_one_short_line(text, clean):
    assert clean_text(text) == clean
    clean_text(text).encode("utf-8")
