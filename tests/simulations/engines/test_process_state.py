"""A run leaves the process that it ran in as it found it, also when it fails."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.events import Event
from kdfed.private.flwr import identify, identity
from kdfed.records import RunFolder
from simulations.cli import main
from simulations.engines import inprocess
from simulations.engines.process_state import preserved


def snapshot() -> dict[str, Any]:
    """Everything of the process that a run could change."""
    loggers = [logging.getLogger(name) for name in ("", "flwr", "ray", "filelock", "kdfed")]
    return {
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "convolutions": (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "identity": identity(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "loggers": [(one.name, one.level, list(one.handlers), one.propagate) for one in loggers],
        "warnings": list(warnings.filters),
        "hook": sys.excepthook,
        "faults": faulthandler.is_enabled(),
        "draws": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


class Stopped(BaseException):
    pass


def stop(event: Event) -> None:
    if event.phase == "rounds":
        random.random()
        raise Stopped


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_an_in_process_run_changes_nothing(tiny, tmp_path, fails):
    experiment = tiny(rounds__horizon=1)
    torch.set_num_threads(2)  # the experiment has one
    before = snapshot()
    try:
        folder = RunFolder.open_for(tmp_path, experiment)
        inprocess.run(experiment, folder, nodes=2, on_event=stop if fails else lambda event: None)
        assert not fails
    except Stopped:
        assert fails
    assert changed(before, snapshot()) == []


def test_the_command_leaves_flowers_log_as_it_was(tiny, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny(rounds__horizon=1).to_yaml())
    before = snapshot()
    assert main(["run", str(file), "--engine", "inprocess", "--out", str(tmp_path / "out")]) == 0
    assert changed(before, snapshot()) == []


def test_whatever_is_changed_is_put_back():
    def meddle() -> None:
        with preserved():
            os.environ["KDFED_TEST"] = "1"
            del os.environ["PATH"]
            torch.set_num_threads(3)
            identify(77, 77)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            logging.getLogger("flwr").setLevel(logging.CRITICAL)
            warnings.simplefilter("ignore")
            sys.excepthook = print  # type: ignore[assignment]
            random.random()
            np.random.rand()
            torch.rand(1)
            raise Stopped

    before = snapshot()
    with pytest.raises(Stopped):
        meddle()
    assert changed(before, snapshot()) == []


RAY = """
import sys
from pathlib import Path
from simulations.experiments import load_experiment
from kdfed.records import RunFolder
from simulations.engines import ray
from test_process_state import Stopped, changed, snapshot, stop

experiment = load_experiment(sys.argv[1])
folder = RunFolder.open_for(sys.argv[2], experiment)
before = snapshot()
try:
    ray.run(experiment, folder, nodes=1, on_event=stop)
except Stopped:
    print(changed(before, snapshot()))
"""


@pytest.mark.sim
@pytest.mark.slow
def test_a_run_on_ray_changes_nothing(tiny, tmp_path):
    """In a process of its own, where Ray has not been imported yet."""
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny(rounds__horizon=1).to_yaml())
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RAY, str(file), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stderr
