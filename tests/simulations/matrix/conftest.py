"""What the tests of matrices share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import simulations.report
from simulations.matrix import running


@pytest.fixture(autouse=True)
def _no_pages_of_cells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Join cells without drawing each one's page, which takes seconds; ``kdfed report`` draws it anew."""
    monkeypatch.setattr(simulations.report, "build_report", lambda folder: None)


class Here:
    """Runs jobs in this process, one by one."""

    def run(
        self,
        title: str,
        job: Callable[..., Any],
        missing: Any,
        *,
        total: int,
        finished: int = 0,
        done: Callable[[tuple[Any, ...], Any], None],
        at_once: int | None = None,
    ) -> None:
        """Run them as :meth:`simulations.workers.Runner.run` does."""
        for own in missing:
            done(own, job(*own))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run jobs in this process: no worker is started, which takes seconds."""

    @contextmanager
    def runner(workers: int, console: Any, begin: Callable[..., None], *arguments: Any) -> Iterator[Here]:
        torch.set_num_threads(1)
        yield Here()

    monkeypatch.setattr(running, "runner", runner)
