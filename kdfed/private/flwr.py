"""Private of flwr."""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from io import BytesIO
from math import prod

import numpy as np
from flwr.app import Array, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords as aggregate_metrics
from flwr.serverapp.strategy.strategy_utils import log_strategy_start_info as log_start
from flwr.supercore.run import Run

__all__ = [
    "Run",
    "aggregate_metrics",
    "error_reply",
    "flat_view",
    "log_start",
    "name_message",
    "readdressed",
]


def name_message(message: Message, message_id: str) -> None:
    """Give a message its id."""
    message.metadata.__dict__["_message_id"] = message_id


def readdressed(message: Message, message_type: str, content: RecordDict) -> Message:
    """Return a message with the same metadata, but of another type, with other content."""
    metadata = copy(message.metadata)
    metadata.message_type = message_type
    changed = copy(message)
    changed.__dict__.update(_metadata=metadata, _content=content)
    return changed


def error_reply(message: Message, reason: str) -> Message:
    """Return the error reply to a message."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def flat_view(array: Array, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Return a flat view of an array of this shape and dtype; None where it is packed in another way."""
    header, data = _header(shape, dtype), array.data
    if array.stype != "numpy.ndarray" or not data.startswith(header):
        return None
    if len(data) != len(header) + prod(shape) * np.dtype(dtype).itemsize:
        return None
    return np.frombuffer(data, dtype, offset=len(header))


@lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"shape": shape, "fortran_order": False, "descr": description}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()
