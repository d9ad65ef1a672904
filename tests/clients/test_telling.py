"""What a node tells besides its work: warnings, and why a handler failed."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.actors import IN_PROCESS
from clients.telling import MOST_WARNINGS, tell
from kdfed.messages import WARNINGS
from kdfed.private.flwr import identify, name_message

log = logging.getLogger("kdfed.something")


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


def _told(handle: Callable[[], None], **node_config: Any) -> Message:
    def answer(message: Message, context: Context) -> Message:
        handle()
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    message = Message(RecordDict({"config": ConfigRecord({})}), 1001, "train")
    name_message(message, "m")
    return tell(message, Context(1, 1001, {**node_config}, RecordDict(), {}), answer)


def _texts(handle: Callable[[], None]) -> Any:
    return _told(handle, **{IN_PROCESS: True}).content.config_records[WARNINGS]["texts"]


@pytest.mark.filterwarnings("always")
def test_warnings_of_python_and_of_kdfed_travel_with_a_simulated_reply_each_once(caplog):
    def handle() -> None:
        for _ in range(3):
            warnings.warn("old\nfashion", DeprecationWarning, stacklevel=1)
            log.warning("participant %d diverged", 2)
        log.error("worse")

    one, two, three = sorted(_texts(handle))
    assert one.startswith("DeprecationWarning: old fashion (test_telling.py, line ")
    assert (two, three) == ("participant 2 diverged", "worse")
    assert caplog.messages == [], "the server logs them"


def test_a_reply_takes_few_and_short_warnings_along():
    def handle() -> None:
        for number in range(1000):
            log.warning("%d %s", number, "x" * 10_000)

    texts = _texts(handle)
    assert len(texts) == MOST_WARNINGS
    assert max(map(len, texts)) == 200


def test_nothing_is_added_where_nobody_warns(caplog):
    with caplog.at_level("INFO", logger="kdfed"):
        reply = _told(lambda: log.info("folded"), **{IN_PROCESS: True})
    assert set(reply.content) == {"metrics"}
    assert caplog.messages == ["folded"], "what is no warning goes where it always went"


@pytest.mark.filterwarnings("always")
def test_a_device_logs_its_own(caplog):
    reply = _told(lambda: warnings.warn("hot", UserWarning, stacklevel=1))
    assert set(reply.content) == {"metrics"}
    (text,) = caplog.messages
    assert text.startswith("UserWarning: hot (test_telling.py, line ")


def test_a_warning_that_is_an_error_elsewhere_is_one_here():
    reply = _told(lambda: warnings.warn("hot", UserWarning, stacklevel=1), **{IN_PROCESS: True})
    assert reply.error.reason.startswith("UserWarning: hot (test_telling.py, line ")


def test_an_exit_is_a_failure_like_any_other():
    def handle() -> None:
        sys.exit(0)

    reply = _told(handle, **{IN_PROCESS: True})
    assert reply.error.reason.startswith("SystemExit: 0 (test_telling.py")


@pytest.mark.parametrize("error", [SystemExit(143), SystemExit(130), KeyboardInterrupt()])
def test_what_a_signal_asked_for_ends_the_process(error: BaseException):
    def handle() -> None:
        raise error

    with pytest.raises(type(error)):
        _told(handle, **{IN_PROCESS: True})


def test_logging_is_as_before_whatever_happens():
    root = logging.getLogger("kdfed")
    before = root.handlers, root.propagate, warnings.showwarning

    def handle() -> None:
        assert root.handlers != before[0]
        raise KeyError("gone")

    reply = _told(handle, **{IN_PROCESS: True})
    assert reply.error.reason.splitlines()[0].startswith("KeyError: 'gone' (test_telling.py, line ")
    assert (root.handlers, root.propagate, warnings.showwarning) == before
