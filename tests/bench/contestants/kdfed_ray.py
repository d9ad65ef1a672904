"""kdfed on Ray actors: ``--engine ray``."""

from __future__ import annotations

from simulations.engines.ray import RayGrid
from work import Work

from clients.client_app import app
from contestants import kdfed_arm
from contestants.gate import Gate


def main(work: Work, gate: Gate) -> None:
    with RayGrid(app, work.workers, threads=1) as grid:
        kdfed_arm.run(work, gate, grid)
