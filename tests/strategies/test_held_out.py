"""What rounds are counted on is seen by the evaluation alone: poisoned, it changes no weight and no decision.

In the shared data set itself, which server and participants read, the inputs of the evaluation and test
splits become NaN (of images: their negative), and every label another one. The splits stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from clients import participants
from kdfed.config import Experiment
from kdfed.data import Dataset, prepare
from kdfed.distill import METHODS
from kdfed.ensembles import ENSEMBLES
from kdfed.partition import partition_of
from kdfed.transfer_sets import TRANSFER_SETS
from strategies.catalogue import STRATEGIES

Build = Callable[..., Experiment]
Run = Callable[..., Any]

NUMBERS = {"source": "synthetic:examples=600,classes=4,shape=6"}
IMAGES = {"source": "digits", "limit": 400}
FED_DF = {"epochs": 2, "batch-size": 16, "select": "best", "labels": True, "weight": 0.5}
DIGEST = {"epochs": 10, "batch-size": 16, "lr": 0.1}
LOGITS = {"distillation": DIGEST, "digest": DIGEST}
SERVER: dict[str, dict[str, Any]] = {
    "feddf": {"distillation": {**FED_DF, "ensemble": "validated"}},
    "fedmd": LOGITS,
    "ds_fl": LOGITS,
    "krum": {"num-malicious-nodes": 1},
}
LOCAL = {"fedprox": {"mode": "proximal", "mu": 0.1}}
BEST = {"select": "best", "epochs": 3, "batch-size": 16, "lr": 0.1}
ENSEMBLE: dict[str, dict[str, Any]] = {"label-counts": {"teachers.label-counts.send": True}}
METHOD: dict[str, dict[str, Any]] = {
    "tuned": {"labels": True, "temperatures": [1.0, 4.0], "weights": [0.5, 1.0]},
    "mutual": {"select": "last"},
}
TRANSFER: dict[str, dict[str, Any]] = {
    "proxy": {"proxy": {"source": "mnist5k", "limit": 400}},
    "generated": {"generator": {"steps": 5, "batch-size": 16, "latent": 8, "width": 4}},
}


def _forget() -> None:
    """Make everything anew that is made of the data and kept."""
    participants.simulated.cache_clear()
    participants._data_of.cache_clear()
    partition_of.cache_clear()


@contextmanager
def poisoned(experiment: Experiment) -> Iterator[None]:
    """Poison what is held out for counting, and restore it."""
    data = prepare(experiment.data)
    held_out = np.concatenate([data.splits.evaluation, data.splits.test])
    kept = {"inputs": data.dataset.inputs, "labels": data.dataset.labels}
    poison = {name: array[np.arange(len(array))] for name, array in kept.items()}  # some are drawn lazily
    images = poison["inputs"].dtype == np.uint8
    poison["inputs"][held_out] = 255 - kept["inputs"][held_out] if images else np.nan
    poison["labels"][held_out] = (kept["labels"][held_out] + 1) % data.classes
    _put(data.dataset, poison)
    try:
        yield
    finally:
        _put(data.dataset, kept)


def _put(dataset: Dataset, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        object.__setattr__(dataset, name, array)
    _forget()


def _check(run_arm: Run, experiment: Experiment, arm: str, **config: Any) -> Any:
    clean = run_arm(experiment, arm, **config)
    with poisoned(experiment):
        other = run_arm(experiment, arm, **config)
    one, two = (dict(result.arrays.to_torch_state_dict()) for result in (clean, other))
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert clean.consolidation == other.consolidation
    assert clean.stopped == other.stopped
    chosen_by, counted_on, reported = (
        [[getattr(record, name) for record in result.records] for result in (clean, other)]
        for name in ("validation_accuracy", "accuracy", "test_accuracy")
    )
    assert chosen_by[0] == chosen_by[1]
    assert counted_on[0] != counted_on[1], "the poison took no effect"
    assert reported[0] != reported[1], "the poison took no effect"
    return clean


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_strategy_sees_it(tiny: Build, run_arm: Run, name: str) -> None:
    changes = {
        "data": NUMBERS,
        "rounds.horizon": 2,
        "server": {"strategy": name, "cohort-size": 2, **SERVER.get(name, {})},
        "local": {"lr": 0.1, "batch-size": 8, **LOCAL.get(name, {})},
    }
    result = _check(run_arm, tiny(only="cold", **changes), "cold")
    assert len(result.records) == 3


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_kd_method_sees_it(tiny: Build, run_arm: Run, name: str) -> None:
    consolidation = {"method": name, **BEST, **METHOD.get(name, {})}
    changes = {"data": NUMBERS, "rounds.horizon": 1, "consolidation": consolidation}
    result = _check(run_arm, tiny(only="consolidated", **changes), "consolidated")
    assert result.consolidation.accuracy is not None


@pytest.mark.parametrize("name", sorted(ENSEMBLES))
def test_no_ensemble_sees_it(tiny: Build, run_arm: Run, name: str) -> None:
    changes = {"data": NUMBERS, "rounds.horizon": 1, "consolidation": {**BEST, "ensemble": name}}
    _check(run_arm, tiny(only="consolidated", **changes, **ENSEMBLE.get(name, {})), "consolidated")


@pytest.mark.parametrize(
    "name", sorted(name for name, kind in TRANSFER_SETS.members.items() if not kind.in_studies_only)
)
def test_no_transfer_set_sees_it(tiny: Build, run_arm: Run, name: str) -> None:
    consolidation = {**BEST, "transfer": name, **TRANSFER.get(name, {})}
    changes = {"data": IMAGES, "rounds.horizon": 1, "consolidation": consolidation}
    _check(run_arm, tiny(only="consolidated", **changes), "consolidated")


@pytest.mark.parametrize("start", ["averaged", "consolidated", "server"])
def test_no_start_sees_it(tiny: Build, run_arm: Run, start: str) -> None:
    experiment = tiny(only="one", arms={"one": {"start": start}}, data=IMAGES)
    _check(run_arm, experiment, "one")


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({"rounds.stop-at-target": True}, "target"),
        ({"rounds.plateau": {"rounds": 1, "min-delta": 0.9, "stop": True}}, "plateau"),
    ],
)
def test_no_stop_is_decided_by_it(tiny: Build, run_arm: Run, changes: dict[str, Any], stopped: str) -> None:
    """With NaN for inputs nobody comes near the target on the evaluation split."""
    experiment = tiny(only="cold", targets=[0.5], data=NUMBERS, **{"rounds.horizon": 30}, **changes)
    result = _check(run_arm, experiment, "cold", targets=(0.5,))
    assert result.stopped == stopped
    assert len(result.records) < 31


def test_a_stop_reads_the_validation_split(tiny: Build, run_arm: Run) -> None:
    """It comes in the round in which the validation accuracies, read by the rule of hits, have reached it."""
    changes = {"rounds.stop-at-target": True, "rounds.horizon": 30, "targets": [0.5]}
    records = run_arm(tiny(only="cold", **changes), targets=(0.5,)).records
    curve = [record.validation_accuracy for record in records]
    means = [min(curve[r], sum(curve[r : r + 3]) / 3) for r in range(len(curve) - 2)]
    assert means[-1] >= 0.5
    assert all(mean < 0.5 for mean in means[:-1])


def test_whoever_builds_a_strategy_is_not_shown_it(tiny: Build, run_arm: Run, monkeypatch: Any) -> None:
    seen = []
    kind = STRATEGIES.members["fedavg"]
    build = kind.build
    monkeypatch.setattr(kind, "build", lambda self, config: seen.append(config) or build(self, config))
    run_arm(tiny())
    (config,) = seen
    assert config.held_out is None
    assert not hasattr(config.data, "test")
    assert not hasattr(config.data, "evaluation")
