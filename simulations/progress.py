"""The live display of a run: phase, round, accuracy, bytes, time left.

It is a listener for events (:data:`kdfed.events.OnEvent`), whichever engine sends them. On a terminal it is a
table that is redrawn; elsewhere it prints a line for each phase and about ten for the rounds of an arm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdfed.config import Experiment
from kdfed.events import Event
from kdfed.task import TASKS

PHASES = {
    "hello": "meeting the nodes",
    "start": "training on the server's labels",
    "teachers": "training teachers",
    "statistics": "summing features",
    "consolidate": "distilling",
    "rounds": "rounds",
    "done": "done",
    "failed": "failed",
}
"""What people read for each phase of an event."""

PLAIN_LINES = 10
"""About how many lines a long phase gets where there is no terminal."""


@dataclass
class _RunProgress:
    """What is known of one arm and seed; times in seconds."""

    event: Event
    started: float
    phase_started: float
    ended: float | None = None
    accuracy: float | None = None

    def take(self, event: Event, now: float) -> None:
        if event.phase != self.event.phase:
            self.phase_started = now
        if event.accuracy is not None:
            self.accuracy = event.accuracy
        self.event = event

    def left(self, now: float) -> float | None:
        """Return the seconds until the horizon at the pace so far."""
        if self.ended is not None:
            return 0.0
        if self.event.phase != "rounds" or self.event.step == 0:
            return None
        return (now - self.phase_started) / self.event.step * (self.event.steps - self.event.step)


class Progress:
    """Shows the events of one experiment while it runs.

    Parameters
    ----------
    experiment
        Tells how many runs (arms x seeds) there will be.
    console
        Where to show them.
    clock
        Seconds, rising.

    Examples
    --------
    >>> with Progress(experiment, Console()) as progress:  # doctest: +SKIP
    ...     engine.run(experiment, folder, nodes=2, on_event=progress)
    """

    def __init__(
        self, experiment: Experiment, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = experiment.name
        self._score = TASKS[experiment.data.task].metric_word
        self._expected = len(experiment.arms) * len(experiment.seeds)
        self._about = "about" if len(experiment.arms) > 1 else "at most about"  # one arm alone may stop early
        self._console = console
        self._clock = clock
        self._runs: dict[tuple[str, int], _RunProgress] = {}
        self._begin = clock()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take the next event."""
        now = self._clock()
        if event.arm == "":
            self._close_all(now)
            return
        key = (event.arm, event.seed)
        run = self._runs.get(key)
        new_phase = run is None or run.event.phase != event.phase
        if run is None and event.phase == "done":  # finished by an earlier command
            self._expected -= 1
            return
        if run is None:
            self._close_all(now)  # arms run one after the other
            run = self._runs[key] = _RunProgress(event, now, now)
        run.take(event, now)
        if event.phase in ("done", "failed"):
            run.ended = now
        if not self._console.is_terminal and (new_phase or _is_milestone(event)):
            self._console.print(self._line(event, run, now), highlight=False, soft_wrap=True)

    def _close_all(self, now: float) -> None:
        for run in self._runs.values():
            if run.ended is None:
                run.ended = now

    def _left(self, now: float) -> float | None:
        """Estimate the seconds until the last run ends, or None before there is a pace to go by."""
        lengths = [run.ended - run.started for run in self._runs.values() if run.ended is not None]
        left = 0.0
        for run in self._runs.values():
            if run.ended is not None:
                continue
            rest = run.left(now)
            if rest is not None:
                lengths.append(now - run.started + rest)
            elif lengths:
                rest = max(0.0, sum(lengths) / len(lengths) - (now - run.started))
            if rest is None:
                return None
            left += rest
        if not lengths:
            return None
        return left + (self._expected - len(self._runs)) * sum(lengths) / len(lengths)

    def _line(self, event: Event, run: _RunProgress, now: float) -> str:
        words = [PHASES[event.phase]]
        if event.steps:
            words[0] += f" {event.step}/{event.steps}"
        if run.accuracy is not None:
            words.append(f"{self._score} {run.accuracy:.3f}")
        if event.bytes:
            words.append(decimal(event.bytes))
        left = self._left(now)
        if left is not None and left >= 1:
            words.append(f"{self._about} {format_seconds(left)} left")
        if event.message:
            words.append(event.message)
        return escape(f"{event.arm}, seed {event.seed}: {', '.join(words)}")

    def _render(self) -> RenderableType:
        now = self._clock()
        table = Table(box=None, pad_edge=False, header_style="dim")
        for header in ("arm", "seed", "phase", "", "step", self._score, "bytes", "time"):
            table.add_column(header, justify="left" if header in ("arm", "phase", "") else "right")
        room = max(1, self._console.height - 5)
        for (arm, seed), run in list(self._runs.items())[-room:]:
            event = run.event
            over = run.ended is not None and event.phase != "failed"
            table.add_row(
                escape(arm),
                str(seed),
                Text("done", "green") if over else Text(PHASES[event.phase], "cyan"),
                ProgressBar(event.steps, event.step, width=20) if event.steps and not over else "",
                f"{event.step}/{event.steps}" if event.steps else "",
                "" if run.accuracy is None else f"{run.accuracy:.3f}",
                decimal(event.bytes) if event.bytes else "",
                format_seconds((now if run.ended is None else run.ended) - run.started),
            )
        left = self._left(now)
        state = f"run {len(self._runs)} of {self._expected}" if self._runs else "starting"
        words = [self._name, state, format_seconds(now - self._begin)]
        if left is not None and left >= 1:
            words.append(f"{self._about} {format_seconds(left)} left")
        return Group(table, Text(" · ".join(words), "dim")) if self._runs else Text(" · ".join(words), "dim")


def _is_milestone(event: Event) -> bool:
    if event.phase in ("start", "consolidate"):
        return event.step == event.steps
    every = max(1, math.ceil(event.steps / PLAIN_LINES))
    return event.step == event.steps or event.step % every == 0


def format_seconds(seconds: float) -> str:
    """Return a duration for people: ``8 s``, ``2 min 05 s``, ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
