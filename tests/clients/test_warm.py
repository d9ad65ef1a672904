"""Forking clients: what a child is, and when there must be none.

Children are forked by a process of their own: pytest's has threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clients.warm import unsafe

ROOT = Path(__file__).parents[2]


def alone(code: str) -> str:
    """Run code in a fresh process, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PREAMBLE = """
import os, signal, sys, time
from clients.warm import Children, unsafe
from kdfed.private.flwr import NodeTask
children = Children()

def all_ended():
    ended = []
    while children._running:
        ended += [(task.number, code) for task, code in children.ended()]
        time.sleep(0.01)
    return ended
"""


def test_children_end_with_their_work_and_are_reaped() -> None:
    said = alone("""
def dies(): os.kill(os.getpid(), signal.SIGKILL)
def raises(): raise ValueError("x")
works = [lambda: None, dies, raises, lambda: sys.exit(3), lambda: sys.exit("words")]
for number, work in enumerate(works, 1):
    children.fork(work, NodeTask(number, "t"))
print(sorted(all_ended()))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none is left")
""")
    assert said.splitlines() == ["[(1, 0), (2, -9), (3, 1), (4, 3), (5, 1)]", "none is left"]


def test_a_child_takes_signals_for_itself_and_one_that_does_not_end_is_killed() -> None:
    said = alone("""
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
children.fork(lambda: time.sleep(60), NodeTask(1, "t"))
children.fork(stubborn, NodeTask(2, "t"))
time.sleep(0.5)
began = time.monotonic()
children.end(0.3)
print(heard, time.monotonic() - began < 20, children._running)
""")
    assert said.splitlines() == ["[] True {}"]


@pytest.mark.slow
def test_brothers_draw_other_numbers_and_memory_runs_out_for_them_first() -> None:
    said = alone("""
import os, random, numpy, torch
def draw():
    score = open("/proc/self/oom_score_adj").read().strip() if sys.platform == "linux" else "500"
    line = f"{random.random()} {numpy.random.random()} {torch.rand(()).item()} {score}\\n"
    os.write(1, line.encode())  # at once: brothers share the pipe
for number in range(3):
    children.fork(draw, NodeTask(number + 1, "t"))
all_ended()
""")
    drawn = [line.split() for line in said.splitlines()]
    assert [len(set(column)) for column in zip(*drawn, strict=True)] == [3, 3, 3, 1]
    assert {line[3] for line in drawn} == {"500"}


@pytest.mark.slow
def test_a_client_that_is_imported_may_be_forked_unless_cuda_is_initialised() -> None:
    said = alone("""
import torch
from clients.warm import preload
for kind in ("folder", "parquet", "csv", "npz", "package.module"):
    preload(f"{kind}:x")
print(repr(unsafe(1)), "clients.client_app" in sys.modules)
torch.cuda.is_initialized = lambda: True
print(unsafe(1))
""")
    assert said.splitlines()[0] == "'' True"
    assert said.splitlines()[1].startswith("expected CUDA to be left to the child")


def test_a_thread_forbids_it() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="somebody's")
    thread.start()
    try:
        assert "somebody's" in unsafe(1)
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lists them")
def test_a_librarys_own_threads_forbid_it_but_for_as_many_as_are_allowed() -> None:
    said = alone("""
import torch
torch.set_num_threads(3)
a = torch.rand(400, 400); a @ a
print("expected at most 1 threads" in unsafe(1), repr(unsafe(16)))
""")
    assert said == "True ''\n"
