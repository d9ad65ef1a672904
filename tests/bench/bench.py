"""``make bench``: a federated round of kdfed, of its peers and of a bare PyTorch loop, side by side.

Everybody trains the same participants from the same weights for as many steps, and averages them by their
numbers of examples. Three things are checked: local steps; the weights after a round in which the order of
examples does not matter (``weights_differ``: the distance to the bare loop's weights, as a share of the
distance that those went); and accuracy. One worker has one core, with every process that it starts. See
``harness.py`` for how turns are taken, and ``contestants/`` for who takes part.

Written to ``--out``, each as it becomes known:

- ``bench.json``, a flat list of contestant, model, participants, workers, seconds_per_round,
  participants_per_second, startup_seconds, peak_pss_mb, accuracy and more;
- ``scale.json``, the same of kdfed with ever more participants of two synthetic examples each;
- ``consolidation.json``: seconds per 10,000 teacher-images;
- ``bench.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import consolidation
import harness
import picture
import torch
from contestants import CONTESTANTS
from rich.console import Console
from rich.table import Table
from work import START, Work, warm

from kdfed.models import State

SECTIONS = ("rounds", "consolidation", "scale")
SAME_WEIGHTS = 1e-3
"""Largest ``weights_differ`` of float32 sums in another order."""

COMPARABLE = 100
"""From so many participants on, accuracies are compared. Fewer take many skewed steps each: then accuracy
varies by tens of points from round to round, with the order of examples alone."""

Case = tuple[str, int, int]
"""Model, participants, workers."""


class Bench:
    """What the options ask for, and where it goes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console()
        self.console.width = max(self.console.width, 120)
        self.logs = options.out.resolve() / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.started: set[str] = set()
        self.differ: dict[tuple[str, str, int], float | str] = {}
        self.curves: dict[tuple[str, int], list[float | None]] = {}

    def rounds(self) -> list[dict[str, Any]]:
        """Race every case."""
        rows: list[dict[str, Any]] = []
        for model, participants, workers in self.cases():
            work = Work(model, participants, workers, self.cohort_size(participants, workers))
            names = [
                name
                for name, entry in CONTESTANTS.items()
                if name in self.options.contestants and (self.options.before or not entry.before)
            ]
            fresh = self.race(work, names)
            rows += fresh
            harness.add_ratios(rows, [name for name, entry in CONTESTANTS.items() if entry.peer])
            self.write("bench.json", rows)
            self.console.print(table(fresh))
        return rows

    def cases(self) -> list[Case]:
        if self.options.quick:
            return [(model, p, 1) for model in ("cnn", "mlp") for p in (10, 500)] + [("cnn", 500, 2)]
        chosen = self.options
        return [
            (model, participants, workers)
            for workers in sorted(chosen.workers)
            for model in chosen.models
            for participants in chosen.participants
        ]

    def cohort_size(self, participants: int, workers: int) -> int:
        """Return as many participants as one call takes well: one cohort for each worker."""
        return self.options.cohort_size or min(500, -(-participants // workers))

    def scale(self) -> list[dict[str, Any]]:
        """Race kdfed alone, with ever more participants."""
        rows = []
        for participants in self.options.scale:
            rows += self.race(
                Work("features", participants, 1, self.cohort_size(participants, 1)), ["kdfed-ray"]
            )
            self.write("scale.json", rows)
        self.console.print(table(rows))
        return rows

    def consolidation(self) -> list[dict[str, Any]]:
        """Time teachers' logits."""
        with harness.pinned(self.cores(1)):
            rows = consolidation.measure(self.options.teachers)
        self.write("consolidation.json", rows)
        for row in rows:
            self.console.print(
                f"{row['teachers']} teachers, {row['images']} images: "
                f"{row['kdfed_seconds_per_10k']:.3f} s per 10,000 teacher-images, "
                f"{row['loop_seconds_per_10k']:.3f} s in a loop"
            )
        return rows

    def race(self, work: Work, names: Sequence[str]) -> list[dict[str, Any]]:
        """Race contestants on one piece of work, and return their rows."""
        case = (work.model, work.participants, work.workers)
        if work.model not in self.started:
            torch.save(warm(work.model), self.logs / f"{work.model}.pt")
            self.started.add(work.model)
        absent = {name: self.absent(name, work) for name in names}
        present = [name for name in names if absent[name] is None]
        self.verify(present, work)
        self.say(f"{work.model}, {work.participants} participants, {work.workers} workers: racing")
        contestants = [self.contestant(name, work) for name in present]
        harness.race(contestants, self.options.rounds, self.options.budget)
        for contestant in contestants:
            if contestant.name == "bare-loop":
                self.curves[case[:2]] = [made.accuracy for made in contestant.rounds]
        for contestant in contestants:
            self.judge(contestant, work)
        rows = [harness.row(contestant, *case) for contestant in contestants]
        rows += [
            harness.skipped(name, *case, reason) for name, reason in absent.items() if reason is not None
        ]
        return sorted(rows, key=lambda row: list(CONTESTANTS).index(row["contestant"]))

    def judge(self, contestant: harness.Contestant, work: Work) -> None:
        """Fail a contestant that did other work than the bare loop."""
        differ = self.differ[contestant.name, work.model, work.workers]
        if isinstance(differ, float):
            contestant.weights_differ = differ
        if contestant.failure is None and isinstance(differ, str):
            contestant.failure = f"its weights could not be compared: {differ}"
        elif contestant.failure is None and contestant.weights_differ > SAME_WEIGHTS:
            contestant.failure = f"not the same work: weights differ by {differ:.2g} of what a round changes"
        compared = work.participants >= COMPARABLE
        curve = self.curves.get((work.model, work.participants), ()) if compared else ()
        harness.check(contestant, work.steps(), curve)

    def verify(self, names: Sequence[str], work: Work) -> None:
        """Compare weights with the bare loop's, once a model and number of workers."""
        new = [name for name in names if (name, work.model, work.workers) not in self.differ]
        if not new:
            return
        self.say(f"{work.model}, {work.workers} workers: comparing weights")
        small = replace(work, participants=min(work.participants, 10)).order_free()
        reference = self.weights("bare-loop", replace(small, workers=1))
        assert not isinstance(reference, str), reference
        start = torch.load(self.logs / f"{work.model}.pt")
        went = distance(reference, start)
        for name in new:
            key = (name, work.model, work.workers)
            got = reference if name == "bare-loop" else self.weights(name, small)
            self.differ[key] = got if isinstance(got, str) else distance(got, reference) / went

    def weights(self, name: str, work: Work) -> State | str:
        """Return a contestant's weights after one round, or why there are none."""
        contestant = self.contestant(name, work)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.pt"
            try:
                contestant.start()
                contestant.round(path)
                state: State = torch.load(path)
            except harness.ContestantError as error:
                contestant.failure = str(error)
                return contestant.failure
            finally:
                contestant.finish()
        return state

    def absent(self, name: str, work: Work) -> str | None:
        options = self.options
        if options.quick and name == "flower" and work.participants > 100:
            return "more than 100 participants not with --quick"
        return CONTESTANTS[name].absent(work.workers, work.participants, options.slow, options.peers)

    def contestant(self, name: str, work: Work) -> harness.Contestant:
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        here = Path(__file__).parent
        if CONTESTANTS[name].before:
            here = self.options.before.resolve() / "tests" / "bench"
        environment = {
            **dict.fromkeys(threads, "1"),
            "PYTHONPATH": os.pathsep.join(map(str, (here, here.parents[1]))),  # its checkout, no other
            "RAY_ADDRESS": "local",  # frameworks join any cluster that they find
            "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_TELEMETRY_ENABLED": "0",
            START: str(self.logs),
            "KDFED_BENCH_PEERS": str(self.options.peers or ""),
        }
        return harness.Contestant(
            name,
            [sys.executable, "-m", "contestants", CONTESTANTS[name].module, work.write()],
            self.logs / f"{name}-{work.model}-{work.participants}-{work.workers}.txt",
            self.cores(work.workers),
            environment,
        )

    def cores(self, workers: int) -> set[int] | None:
        """Return as many cores as workers, or None where processes cannot be pinned to them."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        mine = sorted(os.sched_getaffinity(0))
        if workers > len(mine):
            raise SystemExit(f"{workers} workers need as many cores, but this process may use {len(mine)}")
        return set(mine[:workers])

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        (self.options.out / name).write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')} {text}")


def distance(one: State, other: State) -> float:
    """Return the Euclidean distance of two models."""
    return float(sum((one[key].double() - other[key].double()).square().sum() for key in other)) ** 0.5


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return rows as people read them."""
    made = Table(box=None, header_style="bold", title_justify="left")
    for column in ("contestant", "model", "P", "workers", "s/round", "participants/s"):
        made.add_column(column, justify="left" if column in ("contestant", "model") else "right")
    for column in ("start s", "PSS MB", "accuracy", "idle CPU", "x peer", "x loop", "x one w."):
        made.add_column(column, justify="right")
    for row in rows:
        numbers = (
            _number(row["seconds_per_round"], ".3f"),
            _number(row["participants_per_second"], ",.0f"),
            _number(row["startup_seconds"], ".1f"),
            _number(row["peak_pss_mb"], ",.0f"),
            _number(row["accuracy"], ".3f"),
            _number(row["idle_cpu_share"], ".0%"),
            _number(row["times_faster_than_fastest_peer"], ".2f"),
            _number(row["times_faster_than_bare_loop"], ".2f"),
            _number(row["times_faster_than_one_worker"], ".2f"),
        )
        case = (row["contestant"], row["model"], str(row["participants"]), str(row["workers"]))
        made.add_row(*case, *numbers, style=None if row["status"] == "ok" else "dim")
    made.caption = "\n".join(
        f"{row['contestant']} {row['status']}: {row['reason']}" for row in rows if row["status"] != "ok"
    )
    made.caption_justify = "left"
    return made


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time federated rounds, side by side.")
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/bench"), help="folder of the figures")
    add("--quick", action="store_true", help="fewer cases, nothing but rounds")
    add("--slow", action="store_true", help="Flower above 500 participants too")
    add("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    add("--models", nargs="+", choices=("cnn", "mlp", "resnet8"), default=["cnn", "mlp", "resnet8"])
    add("--participants", nargs="+", type=int, default=[10, 100, 500, 2000])
    add("--workers", nargs="+", type=int, default=[1, 2])
    add("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    add("--rounds", type=int, default=5, help=f"timed rounds, {harness.LEAST} or more")
    add("--budget", type=float, default=30.0, help="seconds of timed rounds a contestant and case")
    add("--cohort-size", type=int, help="participants that kdfed trains in one call; default: by case")
    add("--teachers", nargs="+", type=int, default=[20, 100, 300], help="for consolidation")
    add("--scale", nargs="+", type=int, default=[100, 500, 1000, 2000, 5000, 10_000], help="participants")
    add("--before", type=Path, help="another checkout of kdfed, to race this one with")
    peers = os.environ.get("KDFED_BENCH_PEERS")
    add("--peers", type=Path, default=peers and Path(peers), help="folder where peers are installed")
    options = parser.parse_args(arguments)
    if options.rounds < harness.LEAST:
        parser.error(f"--rounds must be {harness.LEAST} or more")
    return options


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contestants are ended, too
    options = parse()
    bench = Bench(options)
    sections = ("rounds",) if options.quick else options.sections
    results = {section: getattr(bench, section)() for section in SECTIONS if section in sections}
    if "rounds" in results:
        bench.console.print(table(results["rounds"]))
        picture.draw(results["rounds"], list(CONTESTANTS), options.out / "bench.png")
    bench.console.print(f"figures: {options.out}")


if __name__ == "__main__":
    main()
