"""The teacher handler of a Flower app that has a train handler already.

One line more in a ClientApp::

    app.train("teacher")(teacher(train))

Nothing that a message names is looked up here, imported or built: the app's own handler has its own model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from kdfed.errors import ParticipantError, shown
from kdfed.messages import ARRAYS, CONFIG, METRICS, Train, TrainTeacher, record_of
from kdfed.metrics import LOCAL_STEPS
from kdfed.private.flwr import readdressed

Handler: TypeAlias = Callable[[Message, Context], Message]


def teacher(train: Handler) -> Handler:
    """Return the handler of ``train.teacher`` that trains by an app's own train handler.

    It is called ``teachers.epochs`` times, each time with the arrays that it replied before, so an epoch of a
    teacher is whatever one call does. What it is given looks like any train message: of type ``train``, with
    ``arrays`` and ``config``, which holds everything of ``train_config``; its ``server-round`` is 0, because
    the rounds have not begun. The last call's arrays and metrics are sent, with the sum of ``local-steps``
    if it tells them.

    Parameters
    ----------
    train
        The app's train handler, decorated or not. Mods of its own (``@app.train(mods=...)``) are not part of
        it; those of the app are.

    Returns
    -------
    callable
        (message, context) -> reply. It raises what ``train`` raises, and
        :class:`~kdfed.errors.ParticipantError` where it is asked for what a train handler cannot do:
        ``teachers.upload: logits`` and ``teachers.init: own``, or does not reply with arrays and metrics.
    """

    def train_teacher(message: Message, context: Context) -> Message:
        asked = TrainTeacher.from_record(message.content)
        if asked.settings.upload != "weights":
            raise ParticipantError(
                f"expected teachers.upload: weights, got {asked.settings.upload!r}: a train handler knows no "
                "transfer set; set it, or write a teacher handler that replies with logits"
            )
        if asked.head is not None:
            raise ParticipantError(
                f"expected no statistics to be asked for with the teacher, got head {asked.head.head!r}: a "
                "train handler knows no features; remove 'with-teachers' from closed-form.at"
            )
        arrays = record_of(message.content, ARRAYS, ArrayRecord)
        if not arrays:
            raise ParticipantError(
                f"expected teachers.init: common, got {asked.settings.init!r}: a train handler starts from "
                "the arrays that it is sent, and none were"
            )
        config = {**record_of(message.content, CONFIG, ConfigRecord), "server-round": 0}
        steps = 0
        for _ in range(asked.settings.epochs):
            content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(dict(config))})
            reply: object = train(readdressed(message, Train.type, content), context)
            if not isinstance(reply, Message):
                raise ParticipantError(f"expected the train handler to return a Message, got {shown(reply)}")
            if reply.has_error():
                return Message(reply.error, reply_to=message)
            arrays = record_of(reply.content, ARRAYS, ArrayRecord)
            metrics = record_of(reply.content, METRICS, MetricRecord)
            if not arrays or not metrics:
                raise ParticipantError(
                    f"expected the train handler to reply with an ArrayRecord {ARRAYS!r} and a MetricRecord "
                    f"{METRICS!r}, neither empty, got {_told(reply.content)}"
                )
            made = metrics.get(LOCAL_STEPS, 0)
            if not isinstance(made, int):
                raise ParticipantError(
                    f"expected the train handler to tell {LOCAL_STEPS} as a whole number, got {shown(made)}"
                )
            steps += made
        if LOCAL_STEPS in metrics:
            metrics[LOCAL_STEPS] = steps
        return Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=message)

    return train_teacher


def _told(content: RecordDict) -> str:
    """Name records, with their kinds and sizes."""
    told = [f"{type(record).__name__} {key!r} of {len(record)}" for key, record in sorted(content.items())]
    return ", ".join(told) or "none"
