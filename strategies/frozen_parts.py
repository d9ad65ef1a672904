"""What devices are sent of a backbone: its frozen part, once, where it is not installed with the software.

A simulation sends none: every process reads it where it lies. It is counted as a device would need it: with
``weights: download`` or ``file:``, in a participant's first message of an arm that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from kdfed.messages import BACKBONE, CONFIG, FIXED, count_bytes, record_of
from kdfed.reading import cut_of
from kdfed.settings import ModelSettings


class FrozenParts:
    """Who holds which frozen part already, in one arm."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], int] = {}

    def due(self, participant: int, content: RecordDict) -> int:
        """Return the bytes of a frozen part that a participant lacks for a message, and count them as sent.

        Parameters
        ----------
        participant
            Who gets the message.
        content
            Of the message. Of the same backbone, cut elsewhere, only what is more is sent.
        """
        config = record_of(content, CONFIG, ConfigRecord)
        if BACKBONE not in config:
            return 0
        key = participant, str(config[BACKBONE])
        size, held = _bytes_of(str(config["model"])), self._held.get(key, 0)
        self._held[key] = max(size, held)
        return max(size - held, 0)


class FixedWeights:
    """Who holds which weights that rounds do not train (``local.trainable``), in one arm.

    A simulation sends them in every message; they are counted as a device would need them: once, and again
    where the server has changed them.
    """

    def __init__(self) -> None:
        self._held: dict[int, str] = {}

    def due(self, participants: Iterable[int], content: RecordDict) -> int:
        """Return the bytes of such weights that participants lack for a message, and count them as sent."""
        record = record_of(content, FIXED, ArrayRecord)
        if not record:
            return 0
        known = hashlib.sha256()
        for key, array in record.items():
            known.update(key.encode() + array.data)
        lacking = [one for one in participants if self._held.get(one) != known.hexdigest()]
        self._held |= dict.fromkeys(lacking, known.hexdigest())
        return len(lacking) * count_bytes(record)


@lru_cache(maxsize=16)
def _bytes_of(model: str) -> int:
    """Return the bytes of a model's frozen part; 0 where it is installed with the software."""
    settings = ModelSettings.model_validate_json(model)
    cut = None if settings.weights == "installed" else cut_of(settings)
    return 0 if cut is None else cut.frozen_bytes
