"""The results of trials that are finished: each a file, named by all that it depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from kdfed.config import Experiment
from kdfed.outside import code_of, models_of
from kdfed.records import models_sha256, write_atomically
from simulations.study.hashes import code_sha256, data_sha256
from simulations.tuning import trial
from simulations.tuning.trial import TrialResult, UntilFlat, tuning_settings

_RESULT = TypeAdapter(TrialResult)
_CODE = ("kdfed", "clients", "strategies")


def trial_key(
    experiment: Experiment, name: str, seed: int, rounds: int, share: float, until: UntilFlat | None
) -> str:
    """Return the key of a trial: a hash of its arm's settings, the data, files of models, and its code."""
    arm = experiment.arm(name)
    settings = arm.model_dump(mode="json", exclude={"rounds", "listeners", "threads"})
    parts = [
        torch.__version__,
        code_sha256(code_of(arm), _CODE, Path(trial.__file__)),
        data_sha256(tuning_settings(arm.data, share)),
        [models_sha256(path) for path in models_of(arm)],
        settings,
        [seed, rounds, share, until and asdict(until)],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def read_result(cache: Path, key: str) -> TrialResult | None:
    """Return a trial's result; None where there is none that can be read, so that it is run again."""
    try:
        return _RESULT.validate_json((cache / f"{key}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def write_result(cache: Path, key: str, result: TrialResult) -> None:
    """Keep a trial's result.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    write_atomically(cache / f"{key}.json", _RESULT.dump_json(result))
