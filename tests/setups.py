"""Setups for tests: one thread of a CPU, in float32."""

from __future__ import annotations

import torch

from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION, REGRESSION

CPU = Setup(CLASSIFICATION, torch.device("cpu"), threads=1, precision="float32")
CPU_REGRESSION = Setup(REGRESSION, torch.device("cpu"), threads=1, precision="float32")
