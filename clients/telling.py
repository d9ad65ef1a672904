"""What a node has to tell besides its work: why a handler failed, and what warnings came up on the way.

A worker's log is read by nobody, and often lost. So a simulation's reply takes warnings along in a record of
its own, which no ledger counts, and the server logs each distinct text once. A device logs its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.common.constant import ErrorCode

from clients.actors import is_simulated
from kdfed import wire
from kdfed.errors import one_line
from kdfed.reasons import reason_of

MOST_WARNINGS = 20
"""Distinct warnings that a reply takes along."""

_ROOT = logging.getLogger("kdfed")
log = logging.getLogger("kdfed.clients")


def tell(message: Message, context: Context, handle: Callable[[Message, Context], Message]) -> Message:
    """Handle a message: a Flower mod around every handler.

    An exception becomes an error reply that says where it came from (see
    :func:`kdfed.reasons.reason_of`), the same on every engine; Flower would send whatever text its processes
    make of it. Warnings of Python and of the logger ``kdfed`` become a record of the reply.
    """
    simulated = is_simulated(context)
    with _collected() as texts:
        try:
            reply = handle(message, context)
        except Exception as error:
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason_of(error)), reply_to=message)
    if simulated and texts and reply.has_content():
        reply.content[wire.WARNINGS] = ConfigRecord({"texts": list(texts)})
        return reply
    for text in texts:
        log.warning("%s", text)
    if not simulated and reply.has_error():
        log.error("%s", reply.error.reason)
    return reply


class _Collector(logging.Handler):
    """Keeps records instead of handling them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _collected() -> Iterator[dict[str, None]]:
    """Collect warnings: distinct texts, in order, there once the block has ended.

    Filters stay as they are, so what is an error elsewhere is one here. Records below WARNING go where they
    would have gone.
    """
    texts: dict[str, None] = {}
    collector, handlers, propagate = _Collector(), _ROOT.handlers, _ROOT.propagate
    _ROOT.handlers, _ROOT.propagate = [collector], False
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield texts
    finally:
        _ROOT.handlers, _ROOT.propagate = handlers, propagate
    told = [record.getMessage() for record in collector.records if record.levelno >= logging.WARNING]
    for warning in caught:
        place = f" ({PurePath(warning.filename).name}, line {warning.lineno})"
        told.append(f"{one_line(f'{warning.category.__name__}: {warning.message}', 200 - len(place))}{place}")
    distinct = list(dict.fromkeys(map(one_line, told)))
    texts.update(dict.fromkeys(distinct[:MOST_WARNINGS]))
    for record in collector.records:
        if record.levelno < logging.WARNING:
            logging.getLogger(record.name).handle(record)
