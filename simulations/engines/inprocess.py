"""The same messages without processes: for tests, debugging and small runs."""

from __future__ import annotations

from clients.client_app import app as client_app
from kdfed.config import Experiment
from kdfed.events import OnEvent
from kdfed.records import RunFolder
from simulations.engines.checks import refuse_devices
from simulations.engines.in_process_grid import InProcessGrid
from simulations.engines.process_state import preserved
from simulations.server_app import run_experiment


def check(experiment: Experiment, *, nodes: int, address: str | None = None) -> None:
    """Refuse what cannot run here: devices, because nothing but this process is needed."""
    refuse_devices(experiment)


@preserved()
def run(
    experiment: Experiment, folder: RunFolder, *, nodes: int, on_event: OnEvent, report: bool = True
) -> None:
    """Run an experiment in this process.

    Parameters
    ----------
    nodes
        Nodes that cohorts are dealt to; they take turns, and the result does not depend on their number.
    report
        Whether pictures and page are made.

    Raises
    ------
    RunError
        If the run failed.
    """
    run_experiment(InProcessGrid(client_app, nodes), experiment, folder, "inprocess", on_event, report)
