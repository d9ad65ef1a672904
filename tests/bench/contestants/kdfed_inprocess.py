"""kdfed without processes: ``--engine inprocess``."""

from __future__ import annotations

from work import Work

from clients.client_app import app
from contestants import kdfed_arm
from contestants.gate import Gate
from simulations.engines.inprocess import InProcessGrid


def main(work: Work, gate: Gate) -> None:
    kdfed_arm.run(work, gate, InProcessGrid(app, 1))
