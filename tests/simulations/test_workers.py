"""Jobs are handed out, and told when they end; in threads, which start at once."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from kdfed.errors import RunError
from simulations.workers import Runner, progress_on, run_all


def double(number):
    if number == 13:
        raise ValueError("unlucky")
    return 2 * number


def test_every_job_is_run_and_told_with_its_arguments():
    told = {}
    with ThreadPoolExecutor(2) as pool:
        run_all(pool, double, [(1,), (2,), (3,)], lambda own, result: told.update({own: result}))
    assert told == {(1,): 2, (2,): 4, (3,): 6}


def test_arguments_are_asked_for_when_a_job_has_ended():
    """With two at once, the third is asked for when one has ended and is told."""
    told, asked = [], []

    def arguments():
        for number in range(5):
            asked.append((number, len(told)))
            yield (number,)

    with ThreadPoolExecutor(2) as pool:
        run_all(pool, double, arguments(), lambda own, result: told.append(own), at_once=2)
    assert asked == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)]
    assert len(told) == 5


def test_a_job_that_raises_ends_it_and_is_named():
    with ThreadPoolExecutor(1) as pool, pytest.raises(RunError, match=r"\(13,\): ValueError: unlucky"):
        run_all(pool, double, [(13,), (1,)], lambda own, result: None, at_once=1)


def test_a_runner_counts_what_was_finished_before():
    console = Console(file=io.StringIO())
    with ThreadPoolExecutor(1) as pool, progress_on(console) as progress:
        Runner(pool, progress).run("doubling", double, [(1,), (2,)], total=5, finished=3)
        (bar,) = progress.tasks
        assert (bar.description, bar.completed, bar.total) == ("doubling", 5, 5)
