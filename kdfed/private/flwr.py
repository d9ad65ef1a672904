"""Private of flwr."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from math import prod

import numpy as np
from flwr.app import Array, Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords as aggregate_metrics
from flwr.supercore.run import Run

__all__ = ["Run", "aggregate_metrics", "error_reply", "flat_view", "name_message"]


def name_message(message: Message, message_id: str) -> None:
    """Give a message its id."""
    message.metadata.__dict__["_message_id"] = message_id


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
