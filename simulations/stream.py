"""What ``flwr run --stream`` and ``flwr log`` show of a run: its phases, and one line an evaluation.

It is a listener for events, as the live display of ``kdfed run`` is (:mod:`simulations.progress`): nobody
looks at a SuperLink's terminal, so the ServerApp's log says the same.
"""

from __future__ import annotations

import logging

from rich.filesize import decimal

from kdfed.config import Experiment
from kdfed.events import Event
from kdfed.task import TASKS
from simulations.progress import PHASES

log = logging.getLogger("flwr")


class Stream:
    """Logs the events of one experiment.

    Parameters
    ----------
    experiment
        Tells what its score is called.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._score = TASKS[experiment.data.task].metric_word

    def __call__(self, event: Event) -> None:
        """Log an event, if it is more than one of many steps."""
        where = f"{event.arm}, seed {event.seed}"
        if event.phase == "failed":
            log.error("%s", f"{where}: {event.message}" if event.arm else event.message)
        elif not event.arm:
            return
        elif event.phase == "rounds":
            log.info("%s: %s", where, self._evaluated(event))
        elif event.message:
            log.info("%s: %s", where, event.message)
        elif event.phase == "done":
            log.info("%s: finished by an earlier run", where)
        elif event.step == 0 or (event.phase == "consolidate" and event.step == 1):
            log.info("%s: %s", where, PHASES[event.phase])

    def _evaluated(self, event: Event) -> str:
        words = [f"round {event.step} of {event.steps}" if event.step else "the start"]
        if event.accuracy is not None:
            words.append(f"{self._score} {event.accuracy:.3f}")
        words += [event.who] if event.who else []
        words += [f"{decimal(event.bytes)} so far"] if event.bytes else []
        return ", ".join(words)
