"""One message, many participants."""

from __future__ import annotations

import pytest

from clients import answering


def test_each_reason_is_whole_once_and_no_reason_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def one_line(text: str) -> str:
        read.append(text)
        return text.partition("\n")[0]

    monkeypatch.setattr(answering, "one_line", one_line)
    reason = "no memory\nTraceback"
    answers = [(0, 0, 3, ""), (1, -1, 0, reason), (2, 1, 3, ""), (3, -1, 0, reason)]
    assert answering._whole_once(answers) == [*answers[:3], (3, -1, 0, "no memory")]
    assert read == [reason, reason]
