"""How a contestant is told to train a round, and answers.

The harness writes ``round``, ``round PATH`` or ``finish``, one a line; the contestant answers JSON, one
object a line, and leaves the round's weights at the path, if there is one::

    {"event": "ready"}                                            once, before the first round
    {"event": "round", "seconds": s, "steps": n, "accuracy": a}   after each round
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

import torch
from work import Judge

from kdfed.models import State


class Finished(Exception):
    """The harness has seen enough; leaves whatever loop a framework runs."""


class Gate:
    """Lets one round through at a time.

    Parameters
    ----------
    commands, answers
        Where lines are read from and written to.
    judge
        Measures accuracy after each round, outside its time. Default: nobody does.
    """

    def __init__(self, commands: TextIO, answers: TextIO, judge: Judge | None = None) -> None:
        self.commands, self.answers, self.judge = commands, answers, judge
        self._ready = False
        self._path = ""
        self._started = 0.0

    def wait(self) -> None:
        """Block until the next round may begin, and start the clock.

        Raises
        ------
        Finished
            If there is none.
        """
        if not self._ready:
            self._ready = True
            self._answer({"event": "ready"})
        command, _, self._path = self.commands.readline().strip().partition(" ")
        if command != "round":
            raise Finished
        self._started = time.perf_counter()

    def done(self, state: Callable[[], State], steps: int | Callable[[], int]) -> None:
        """Stop the clock, then answer.

        Parameters
        ----------
        state
            Gives the aggregated weights.
        steps
            Local steps of all participants in this round.
        """
        seconds = time.perf_counter() - self._started
        accuracy = self.judge.accuracy(state()) if self.judge is not None else None
        if self._path:
            torch.save(dict(state()), self._path)
        count = steps() if callable(steps) else steps
        self._answer({"event": "round", "seconds": seconds, "steps": count, "accuracy": accuracy})

    def _answer(self, answer: dict[str, Any]) -> None:
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
