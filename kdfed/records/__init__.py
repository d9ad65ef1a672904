"""What every run leaves behind: written as it goes, read back, and summed up.

::

    <run folder>/
    ├── experiment.yaml                  the experiment, every key resolved
    ├── rounds.jsonl                     one line an arm, seed and evaluation
    ├── outcomes.jsonl                   one line an arm and seed that finished, written after its model
    ├── rounds.partial.jsonl             lines of runs that did not finish, and were run again
    ├── summary.json                     hits, totals and comparisons
    ├── models/<arm>-<seed>.safetensors  the final models
    ├── curves.png, report.html          written from the above by ``simulations.report``
"""

from __future__ import annotations

from kdfed.records.folder import RunFolder, check_output, write_atomically
from kdfed.records.rounds import Absent, Failure, Outcome, RoundRecord, Stopped
from kdfed.records.schema import COSTS, Summary
from kdfed.records.summary import DataFacts, summarise
from kdfed.records.versions import models_sha256, versions
from kdfed.records.weights import load_model, load_start, serialised, weights_sha256

__all__ = [
    "COSTS",
    "Absent",
    "DataFacts",
    "Failure",
    "Outcome",
    "RoundRecord",
    "RunFolder",
    "Stopped",
    "Summary",
    "check_output",
    "load_model",
    "load_start",
    "models_sha256",
    "serialised",
    "summarise",
    "versions",
    "weights_sha256",
    "write_atomically",
]
