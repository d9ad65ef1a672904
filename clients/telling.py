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

from flwr.app import ConfigRecord, Context, Message

from clients.actors import is_simulated
from kdfed import wire
from kdfed.errors import MOST_OF_A_LINE, one_line
from kdfed.named import ends_program
from kdfed.private.flwr import error_reply
from kdfed.reasons import reason_of

MOST_WARNINGS = 20
"""Distinct warnings that a reply takes along."""

_ROOT = logging.getLogger("kdfed")
log = logging.getLogger("kdfed.clients")


def tell(message: Message, context: Context, handle: Callable[[Message, Context], Message]) -> Message:
    """Handle a message: a Flower mod around every handler.

    An exception, or an exit that no signal asked for, becomes an error reply that says where it came from
    (see :func:`kdfed.reasons.reason_of`), the same on every engine; Flower would send whatever text its
    processes make of it. Warnings of Python and of the logger ``kdfed`` become a record of the reply.
    """
    simulated = is_simulated(context)
    with _collected() as texts:
        try:
            reply = handle(message, context)
        except (Exception, SystemExit) as error:
            if ends_program(error):
                raise
            reply = error_reply(message, reason_of(error))
    if simulated and texts and reply.has_content():
        reply.content[wire.WARNINGS] = ConfigRecord({"texts": list(texts)})
        return reply
    for text in texts:
        log.warning("%s", text)
    if not simulated and reply.has_error():
        log.error("%s", reply.error.reason)
    return reply


class _Collector(logging.Handler):
    """Keeps the texts of warnings, and other records as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, None] = {}  # a set that keeps its order
        self.others: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            self.others.append(record)
            return
        try:
            self.keep(record.getMessage())
        except Exception:  # arguments that do not fit their format: told as logging tells it
            self.handleError(record)

    def keep(self, text: str) -> None:
        if len(self.texts) < MOST_WARNINGS:
            self.texts[one_line(text)] = None


@contextmanager
def _collected() -> Iterator[dict[str, None]]:
    """Collect warnings: distinct texts, in order, there once the block has ended.

    Filters stay as they are, so what is an error elsewhere is one here. Records below WARNING go where they
    would have gone.
    """
    collector, handlers, propagate = _Collector(), _ROOT.handlers, _ROOT.propagate
    _ROOT.handlers, _ROOT.propagate = [collector], False
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield collector.texts
    finally:
        _ROOT.handlers, _ROOT.propagate = handlers, propagate
    for warning in caught:
        place = f" ({PurePath(warning.filename).name[-60:]}, line {warning.lineno})"
        said = one_line(f"{warning.category.__name__}: {warning.message}", MOST_OF_A_LINE - len(place))
        collector.keep(said + place)
    for record in collector.others:
        logging.getLogger(record.name).handle(record)
