"""Why something failed: file and line of the user's code, the traceback once, and never a flood."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdfed.errors import ConfigError, one_line
from kdfed.models import build_model
from kdfed.reasons import MOST_OF_A_TEXT, MOST_TEXTS, Once, reason_of
from kdfed.settings import ModelSettings

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, input_shape, classes, *, early=False):
        super().__init__()
        self.layer = torch.nn.Linear(input_shape[0], classes)
        self.early = early

    def forward(self, x):
        if self.early:
            return early_typo
        torch.testing.assert_close(x, x + 1)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "users_net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("users_net")


def _reason(function: Any) -> str:
    try:
        function()
    except Exception as error:
        return reason_of(error)
    raise AssertionError("expected it to fail")


def test_the_innermost_line_that_is_the_users_is_named_and_the_traceback_follows(module):
    reason = _reason(lambda: module.Net((3,), 2)(torch.zeros(1, 3)))
    first, second, *_ = reason.splitlines()
    assert first.startswith("AssertionError: Tensor-likes are not close!")
    assert first.endswith("(users_net.py, line 13)"), "not where torch raised it"
    assert second == "Traceback (most recent call last):"
    assert one_line(reason) == first


def test_a_library_that_raises_is_not_the_users_whichever_it_is():
    packaging = importlib.import_module("packaging.version")
    reason = _reason(lambda: packaging.Version("no version"))
    assert "(test_reasons.py, line " in reason.splitlines()[0]


def test_what_an_error_of_ours_came_from_is_named(module):
    settings = ModelSettings(name="users_net:Net", options={"early": True})
    with pytest.raises(ConfigError) as raised:
        build_model(settings, (3,), 2, seed=0)
    first, *rest = reason_of(raised.value).splitlines()
    assert first == "NameError: name 'early_typo' is not defined (users_net.py, line 12)"
    assert any("cannot take inputs of shape (3,)" in line for line in rest)


def test_an_error_of_ours_alone_is_only_its_message():
    error = _raised(lambda: build_model(ModelSettings(name="cn"), (1, 8, 8), 2, seed=0))
    assert reason_of(error).startswith("ConfigError: model: 1 mistake\n  model: unknown model 'cn'")
    assert "Traceback" not in reason_of(error)


def test_an_error_in_which_the_user_has_no_part_has_no_place():
    first, *rest = reason_of(_raised(lambda: nn.Linear(2, 2)(torch.zeros(3)))).splitlines()
    assert first.startswith("RuntimeError: ")
    assert "line" not in first
    assert rest[0] == "Traceback (most recent call last):"


def _raised(function: Any) -> BaseException:
    """Return what a call raises, without the frames of this file."""
    try:
        function()
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        return error.with_traceback(trace)
    raise AssertionError("expected it to fail")


def test_a_syntax_error_is_named_where_it_is_and_only_once(tmp_path, monkeypatch):
    (tmp_path / "users_typo.py").write_text("x = 1\ny = (\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = _reason(lambda: importlib.import_module("users_typo")).splitlines()[0]
    assert first == "SyntaxError: '(' was never closed (users_typo.py, line 2)"


def test_a_reason_is_neither_long_nor_unprintable():
    def fail() -> None:
        raise ValueError("\ud800\x1b[31m" + "x" * 10**6)

    reason = _reason(fail)
    assert len(reason) <= MOST_OF_A_TEXT + 10
    assert reason.encode(), "half a surrogate cannot be sent"
    assert "\x1b" not in reason


def test_a_text_is_logged_whole_and_once(caplog):
    once = Once(logging.getLogger("kdfed.test"))
    text = "it failed\nTraceback (most recent call last):\n  deep inside"
    assert once.warn("participant 1", text) == once.warn("participant 2", text) == "it failed"
    assert once.warn("participant 3", "") == "no reason was given"
    assert caplog.messages == [f"participant 1: {text}", "participant 3: no reason was given"]


def test_whoever_invents_texts_fills_no_disk(caplog):
    once = Once(logging.getLogger("kdfed.test"))
    for number in range(MOST_TEXTS + 50):
        assert once.warn("participant 1", f"{number}\n" + "x" * 300) == str(number)
    assert len(caplog.messages) == MOST_TEXTS + 1
    assert caplog.messages[-1] == f"more than {MOST_TEXTS} different texts: no more of them are logged"


def test_nothing_crashes_on_a_python_without_handlers(capsys):
    log = logging.Logger("bare")  # no parent, no handler
    assert Once(log).warn("participant 1", "half \ud800") == "half"
    assert "participant 1: half" in capsys.readouterr().err
