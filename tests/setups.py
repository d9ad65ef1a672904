"""What tests hand to parts of kdfed: one thread of a CPU in float32, a simulation of nobody."""

from __future__ import annotations

import torch

from kdfed.messages import Simulation
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION, REGRESSION

CPU = Setup(CLASSIFICATION, torch.device("cpu"), threads=1, precision="float32")
CPU_REGRESSION = Setup(REGRESSION, torch.device("cpu"), threads=1, precision="float32")

A_SIMULATION = Simulation("{}", '{"kind": "uniform"}', seed=0, threads=1, device="cpu", precision="float32")
"""For ClientApps that do not look at it."""
