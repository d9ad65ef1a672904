"""What becomes of an error's text in a record: one short line."""

from __future__ import annotations

import pickle

import pytest

from kdfed.errors import MOST_OF_A_LINE, ConfigError, Mistake, one_line

TRACEBACK = """Traceback (most recent call last):
  File "/home/me/mymodel.py", line 12, in forward
    return foo
           ^^^
NameError: name 'foo' is not defined"""

RAY = (
    """The actor died unexpectedly before finishing this task.
\tclass_name: Worker
\tactor_id: 5a0d9e
"""
    + "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR. " * 30
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("out of battery", "out of battery"),
        ("  no\n\n  memory\tleft ", "no memory left"),
        (TRACEBACK, "NameError: name 'foo' is not defined"),
        (f"it failed\n{TRACEBACK}", "it failed"),
        ('ray::Worker.handle()\n  File "a.py", line 3, in handle\nOSError: gone', "ray::Worker.handle()"),
        (RAY, "The actor died unexpectedly before finishing this task."),
        ("\x1b[31mred\x1b[0m \x07 half \ud800", "red half"),
        ("\u202eevil", "evil"),
        (ValueError("wrong"), "wrong"),
        ("", ""),
        ("\n \x00\n", ""),
    ],
)
def test_a_text_of_any_kind_becomes_one_line(text, line):
    assert one_line(text) == line


def test_a_long_line_is_cut_and_a_huge_text_too():
    assert one_line("x" * 500) == "x" * (MOST_OF_A_LINE - 1) + "…"
    assert one_line("abcdef", most=4) == "abc…"
    assert one_line("first line\n" + "x\n" * 10_000_000) == "first line"


def test_mistakes_come_whole_from_another_process():
    error = ConfigError("one.yaml", [Mistake("a.b", "expected 1, got 2")])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.source, again.mistakes) == (str(error), error.source, error.mistakes)
