"""kdfed on Ray actors: ``--engine ray``, in the cluster that the engine starts."""

from __future__ import annotations

from work import Work

from clients.client_app import app
from contestants import kdfed_arm
from contestants.gate import Gate
from simulations.engines.ray import RayGrid, started


def main(work: Work, gate: Gate) -> None:
    with started(work.workers):
        grid = RayGrid(app, work.workers, pin=True)
        try:
            kdfed_arm.run(work, gate, grid)
        finally:
            grid.close()
