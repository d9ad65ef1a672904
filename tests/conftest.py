"""Small experiments that the tests of every package share."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from kdfed.backbones import features
from kdfed.config import Experiment
from kdfed.messages import Simulation
from simulations.experiments import build_experiment, merge

os.environ["RAY_ADDRESS"] = "local"  # a cluster of one's own, never one that is found

TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [3],
    "device": "cpu",
    "data": {"source": "digits", "limit": 400},
    "partition": {"kind": "dirichlet", "alpha": 0.5, "participants": 5, "min-examples": 4},
    "model": {"name": "mlp", "options": {"hidden": [16]}},
    "local": {"mode": "plain", "epochs": 1, "batch-size": 8, "lr": 0.1},
    "teachers": {"epochs": 2, "batch-size": 8, "lr": 0.1},
    "consolidation": {"epochs": 3, "batch-size": 16, "lr": 0.1},
    "server": {"strategy": "fedavg", "cohort-size": 2},
    "rounds": {"horizon": 3},
    "targets": ["90%-of-converged"],
    "arms": {"cold": {"start": "random"}, "consolidated": {"start": "consolidated"}},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that start Ray on one worker: each of them wants the whole machine."""
    for item in items:
        if item.get_closest_marker("sim") is not None:
            item.add_marker(pytest.mark.xdist_group("sim"))


@pytest.fixture(autouse=True, scope="session")
def _nothing_at_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what backbones compute out of the user's own cache."""
    features.FOLDER = tmp_path_factory.mktemp("features")


@pytest.fixture
def fresh_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[features.FeatureCache]:
    """Return this process's cache of activations, with nothing in it."""
    monkeypatch.setattr(features, "FOLDER", tmp_path / "features")
    features.default_cache.cache_clear()
    yield features.default_cache()
    features.default_cache.cache_clear()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Callable[..., Experiment]:
    """Return a function that builds the tiny experiment with some keys replaced (dotted names allowed).

    ``only`` names the single arm that it keeps: one that may stop early.
    """

    def build(*, only: str | None = None, **changes: Any) -> Experiment:
        values = merge(TINY, {key.replace("__", "."): value for key, value in changes.items()})
        if only is not None:
            values["arms"] = {only: values["arms"][only]}
        return build_experiment(values)

    return build


@pytest.fixture
def run_arm(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs one arm of an experiment on the in-process grid."""
    from clients.client_app import app
    from kdfed.data import prepare
    from kdfed.saved import Card
    from simulations.engines.inprocess import InProcessGrid
    from simulations.server_app import held_out_data, server_data
    from strategies.arm import initial_state
    from strategies.arm_config import ArmConfig
    from strategies.catalogue import make_strategy
    from strategies.pre_consolidation import PreConsolidation

    def run(
        experiment: Experiment,
        name: str = "cold",
        *,
        nodes: int = 2,
        order: random.Random | None = None,
        grid: Grid | None = None,
        strategy: Strategy | None = None,
        **config: Any,
    ) -> Any:
        arm, seed = experiment.arm(name), experiment.seeds[0]
        prepared = prepare(arm.data)
        data, held_out = server_data(prepared, arm.model), held_out_data(prepared, arm.model)
        store = tmp_path / "store" / uuid4().hex  # a run finds nothing that another one kept
        simulation = Simulation.of(arm, seed, store)
        arm_config = ArmConfig(
            **{
                "arm": arm,
                "data": data,
                "held_out": held_out,
                "seed": seed,
                "name": name,
                "simulation": simulation,
                "card": Card.of(arm.model, arm.data, prepared),
                **config,
            }
        )
        start = ArrayRecord(dict(initial_state(arm, data, seed)))
        return PreConsolidation(strategy or make_strategy(arm_config), arm_config).start(
            grid or InProcessGrid(app, nodes, order), start, arm.rounds.horizon, arm.server.deadlines.train
        )

    return run
