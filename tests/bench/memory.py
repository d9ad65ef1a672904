"""Peak memory of a command: the summed PSS of all its processes, sampled twice a second.

PSS counts a page that several processes share once, divided among them, so the sum is what the machine gives.

    python tests/bench/memory.py kdfed run simulations/hundreds.yaml --overwrite

Processes are found by a mark in their environment and as descendants of those that carry it, because Flower
and Ray detach theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import psutil

MARK = "KDFED_MEMORY_MARK"


def marked(mark: str) -> set[psutil.Process]:
    """Return the processes that carry the mark, descendants included."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def summed_pss(mark: str) -> tuple[int, int]:
    """Return bytes of PSS and number of the processes that carry the mark, descendants included."""
    found, total = marked(mark), 0
    for process in found:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total, len(found)


def main(command: list[str]) -> int:
    """Run a command and print its peak; return its exit code."""
    mark = uuid.uuid4().hex
    started, peak, most = time.monotonic(), 0, 0
    process = subprocess.Popen(command, env={**os.environ, MARK: mark})
    while process.poll() is None:
        total, count = summed_pss(mark)
        peak, most = max(peak, total), max(most, count)
        time.sleep(0.5)
    seconds = time.monotonic() - started
    print(
        f"peak summed PSS {peak / 2**30:.2f} GiB over {most} processes, {seconds:.0f} s, "
        f"exit {process.returncode}"
    )
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
