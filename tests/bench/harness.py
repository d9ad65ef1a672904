"""Runs contestants side by side: each is a process that stays alive, and one works at a time.

Contestants take turns round by round, so that whatever else the machine does disturbs all alike. The first
round warms up and does not count. Contestants that wait are not frozen, because Ray and Flower watch their
own processes; ``idle_cpu_share`` says which share of a core they used meanwhile. See :mod:`contestants.gate`
for what is said over the pipes.
"""

from __future__ import annotations

import json
import os
import queue
import re
import statistics
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memory
import psutil

LEAST = 3
"""Timed rounds that a contestant has at least, whatever its budget."""

LAST = 3
"""Accuracy is the mean of so many last rounds."""

TOLERANCE = 0.02
"""By how much accuracy may fall short of the bare loop's."""

SETTLE, DAEMONS, HIDDEN = 1.0, 0.1, 0.25
"""For so many seconds after its first timed round a contestant is watched: it may use ``DAEMONS`` seconds of
CPU for housekeeping, and as much again as this share of the round. Whoever uses more trains off the clock."""

_ANSWER_SECONDS = 1800.0


class ContestantError(Exception):
    """A contestant that cannot go on, and why."""


@dataclass(frozen=True)
class Round:
    """One round as the contestant measured it; accuracy is None where nobody judges."""

    seconds: float
    steps: int
    accuracy: float | None


class Contestant:
    """A process that trains a round when told to.

    Parameters
    ----------
    name
        In tables.
    command
        Started by :meth:`start`.
    cores
        Where it and all its children may run. Default: wherever this process may.
    log
        Receives what it prints.
    environment
        Added to this process's.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        cores: set[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.command, self.log, self.cores = name, list(command), log, cores
        self.mark = uuid.uuid4().hex
        self.environment = {**os.environ, **(environment or {}), memory.MARK: self.mark}
        self.rounds: list[Round] = []
        self.failure: str | None = None
        self.weights_differ: float | None = None
        self.startup_seconds = 0.0
        self.peak_pss = 0
        self.idle_seconds = self.idle_cpu = 0.0
        self._left: tuple[float, float] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    @property
    def timed(self) -> list[Round]:
        """The rounds that count."""
        return self.rounds[1:]

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        started = time.monotonic()
        with self.log.open("w") as log, pinned(self.cores):
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.log.parent,  # not a checkout, which would be imported, by Ray's workers too
                env=self.environment,
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()
        with self._watched():
            self._hear("ready")
        self.startup_seconds = time.monotonic() - started

    def round(self, weights: Path | None = None) -> Round:
        """Let it train a round; ``weights`` is where it leaves them."""
        self._note_idling()
        watched = not self.rounds
        self._tell("round" if weights is None else f"round {weights}")
        if watched:  # not in timed rounds, where it would take time from them
            with self._watched():
                answer = self._hear("round")
        else:
            answer = self._hear("round")
            self._measure()
        made = Round(float(answer["seconds"]), int(answer["steps"]), answer["accuracy"])
        self.rounds.append(made)
        self._left = (time.monotonic(), self._cpu_seconds())
        return made

    def watch_for_hidden_work(self) -> None:
        """Fail if it goes on working after it answered."""
        before = self._cpu_seconds()
        time.sleep(SETTLE)
        used = self._cpu_seconds() - before
        if used > DAEMONS + HIDDEN * min(SETTLE, self.rounds[-1].seconds):
            raise ContestantError(
                f"works off the clock: {used:.2f} s of CPU in the {SETTLE:g} s after a round of "
                f"{self.rounds[-1].seconds:.2f} s"
            )

    def finish(self) -> None:
        """End the process and everything that it started."""
        if self._process is None:
            return
        if self.failure is None:
            try:
                self._tell("finish")
                self._process.wait(30)
            except (ContestantError, subprocess.TimeoutExpired):
                pass
        left = memory.marked(self.mark)
        for process in left:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(left, 10)
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue

    def _tell(self, command: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise ContestantError(self._last_words()) from error

    def _hear(self, event: str) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=_ANSWER_SECONDS)
        except queue.Empty:
            raise ContestantError(f"no answer in {_ANSWER_SECONDS:.0f} s") from None
        if line is None:
            raise ContestantError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if answer["event"] != event:
            raise ContestantError(f"expected {event!r}, got {line.strip()!r}")
        return answer

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _last_words(self) -> str:
        """Return the last error that the log names, or its last line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        assert self._process is not None
        return (errors or lines or [f"ended with exit code {self._process.poll()}"])[-1][:300]

    def _watched(self) -> _Watch:
        return _Watch(self)

    def _measure(self) -> None:
        self.peak_pss = max(self.peak_pss, memory.summed_pss(self.mark)[0])

    def _cpu_seconds(self) -> float:
        total = 0.0
        for process in memory.marked(self.mark):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def _note_idling(self) -> None:
        if self._left is not None:
            when, cpu = self._left
            self.idle_seconds += time.monotonic() - when
            self.idle_cpu += max(0.0, self._cpu_seconds() - cpu)


class _Watch:
    """Samples a contestant's memory twice a second, from another thread."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant, self.over = contestant, threading.Event()

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.thread.join()

    def _sample(self) -> None:
        while True:
            self.contestant._measure()
            if self.over.wait(0.5):
                return


class pinned:
    """Lets processes started meanwhile run on some cores only; they inherit it for good."""

    def __init__(self, cores: set[int] | None) -> None:
        self.cores = cores if hasattr(os, "sched_setaffinity") else None

    def __enter__(self) -> None:
        if self.cores is not None:
            self.before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, self.cores)

    def __exit__(self, *exception: object) -> None:
        if self.cores is not None:
            os.sched_setaffinity(0, self.before)


def race(contestants: Sequence[Contestant], rounds: int, budget: float = float("inf")) -> None:
    """Start everybody, let them take turns, and end them; what happened is kept by each contestant.

    Parameters
    ----------
    rounds
        Timed rounds of each, after one that warms up.
    budget
        Seconds of timed rounds after which a contestant has no more turns, once it had :data:`LEAST`.
    """
    try:
        for contestant in contestants:
            _guard(contestant, contestant.start)
        for number in range(1 + rounds):
            for contestant in contestants:
                spent = sum(made.seconds for made in contestant.timed)
                over = len(contestant.timed) >= LEAST and spent > budget
                if contestant.failure is None and not over:
                    _guard(contestant, contestant.round)
                if contestant.failure is None and number == 1:
                    _guard(contestant, contestant.watch_for_hidden_work)
    finally:
        for contestant in contestants:
            contestant.finish()


def _guard(contestant: Contestant, action: Any) -> None:
    try:
        action()
    except (ContestantError, OSError, json.JSONDecodeError) as error:
        contestant.failure = str(error) or type(error).__name__


def row(contestant: Contestant, model: str, participants: int, workers: int) -> dict[str, Any]:
    """Return what ``bench.json`` says of a contestant; what was not measured is null."""
    timed, failure = contestant.timed, contestant.failure
    if failure is None and not timed:
        failure = "no timed round"
    median = statistics.median(made.seconds for made in timed) if failure is None else None
    return {
        "contestant": contestant.name,
        "model": model,
        "participants": participants,
        "workers": workers,
        "seconds_per_round": median,
        "participants_per_second": participants / median if median else None,
        "startup_seconds": contestant.startup_seconds if contestant.rounds else None,
        "peak_pss_mb": contestant.peak_pss / 2**20 if contestant.peak_pss else None,
        "accuracy": last_accuracy([made.accuracy for made in contestant.rounds]),
        "weights_differ": contestant.weights_differ,
        "rounds": len(timed),
        "local_steps": contestant.rounds[-1].steps if contestant.rounds else None,
        "slowest_seconds": max(made.seconds for made in timed) if median else None,
        "fastest_seconds": min(made.seconds for made in timed) if median else None,
        "idle_cpu_share": contestant.idle_cpu / contestant.idle_seconds if contestant.idle_seconds else None,
        "status": "ok" if failure is None else "failed",
        "reason": failure,
        **_NO_RATIOS,
    }


_NO_RATIOS: dict[str, float | None] = {
    "times_faster_than_fastest_peer": None,
    "times_faster_than_bare_loop": None,
    "times_faster_than_one_worker": None,
}


def skipped(name: str, model: str, participants: int, workers: int, reason: str) -> dict[str, Any]:
    """Return the row of a contestant that did not take part."""
    nobody = Contestant(name, [], Path(os.devnull))
    nobody.failure = reason
    return {**row(nobody, model, participants, workers), "status": "skipped"}


def last_accuracy(curve: Sequence[float | None]) -> float | None:
    """Return the mean of the last rounds' accuracies: a single early round varies much."""
    known = [accuracy for accuracy in curve if accuracy is not None]
    return statistics.mean(known[-LAST:]) if known else None


def check(contestant: Contestant, steps: int, curve: Sequence[float | None] = ()) -> None:
    """Fail a contestant that did other work.

    Parameters
    ----------
    steps
        Local steps that each round must have.
    curve
        Accuracies of the bare loop, by round; compared after as many rounds as both have. Default: not.
    """
    if contestant.failure is not None or not contestant.rounds:
        return
    other = {made.steps for made in contestant.rounds} - {steps}
    if other:
        contestant.failure = f"not the same work: {other.pop()} local steps a round, expected {steps}"
        return
    common = min(len(curve), len(contestant.rounds))
    own = last_accuracy([made.accuracy for made in contestant.rounds[:common]])
    wanted = last_accuracy(curve[:common])
    if own is not None and wanted is not None and own < wanted - TOLERANCE:
        contestant.failure = (
            f"not the same work: accuracy {own:.3f} after {common} rounds, the bare loop has {wanted:.3f}"
        )


def add_ratios(rows: Sequence[dict[str, Any]], peers: Sequence[str]) -> None:
    """Fill in how many times faster each contestant is; more than 1 is faster.

    Parameters
    ----------
    rows
        Of any configurations; changed in place.
    peers
        Contestants that count as peers. The fastest peer of the same configuration is the measure; a peer is
        not measured by itself. The bare loop has one worker, and is the measure for any number of them.
    """
    time_of = {
        (row["contestant"], row["model"], row["participants"], row["workers"]): row["seconds_per_round"]
        for row in rows
        if row["status"] == "ok"
    }
    for row in rows:
        if row["status"] != "ok":
            continue
        name, own = row["contestant"], row["seconds_per_round"]
        case = (row["model"], row["participants"])
        fastest = [time_of.get((peer, *case, row["workers"])) for peer in peers if peer != name]
        known = [seconds for seconds in fastest if seconds is not None]
        ratios = {
            "times_faster_than_fastest_peer": min(known, default=None),
            "times_faster_than_bare_loop": time_of.get(("bare-loop", *case, 1)),
            "times_faster_than_one_worker": time_of.get((name, *case, 1)) if row["workers"] > 1 else None,
        }
        row.update({key: seconds / own if seconds is not None else None for key, seconds in ratios.items()})
