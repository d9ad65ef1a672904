"""The partition of devices, and what goes with it in an experiment."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from kdfed.config import Experiment
from kdfed.data import prepare
from kdfed.errors import ConfigError, DataError
from kdfed.partition import partition_of
from kdfed.partitions import DevicesPartition
from kdfed.preflight import check_data
from kdfed.settings import DataSettings
from simulations.experiments import build_experiment, merge

DEVICES: dict[str, Any] = {
    "name": "devices",
    "device": "cpu",
    "data": {"source": "devices", "classes": 10, "shape": [1, 8, 8]},
    "partition": {"kind": "devices", "participants": 3},
    "server-data": {"source": "digits", "limit": 300},
    "model": {"name": "mlp"},
    "rounds": {"horizon": 2},
    "targets": [0.5],
    "arms": {"cold": {"start": "random"}, "consolidated": {"start": "consolidated"}},
}


def build(**changes: Any) -> Experiment:
    return build_experiment(merge(DEVICES, changes))


def without(*keys: str, **changes: Any) -> Experiment:
    values = {key: value for key, value in merge(DEVICES, changes).items() if key not in keys}
    return build_experiment(values)


def test_an_experiment_on_devices_is_read_and_written() -> None:
    experiment = build()
    assert experiment.data.of_devices
    assert experiment.server_data is not None
    written = yaml.safe_load(experiment.to_yaml())
    assert "splits" not in written["data"], "each device trains on all that it has"
    assert written["server-data"]["splits"]["transfer"] == 0.3
    assert build_experiment(written) == experiment
    assert check_data(experiment) == []


def test_the_servers_data_are_cut_as_it_says_and_nothing_is_dealt() -> None:
    experiment = build()
    data = prepare(experiment.loaded_data)
    sizes = {name: len(part) for name, part in vars(data.splits).items()}
    assert sizes == {"test": 60, "evaluation": 120, "validation": 30, "transfer": 90, "train": 0}
    rest = {"test": 0.1, "evaluation": 0.1, "validation": 0.1, "transfer": 0.1}
    assert len(prepare(build(**{"server-data.splits": rest}).loaded_data).splits.train) == 180
    with pytest.raises(DataError, match="expected a partition that deals examples, got 'devices'"):
        partition_of(data, DevicesPartition(participants=3), 0)
    with pytest.raises(DataError, match="expected a source that can be read here, got 'devices'"):
        prepare(DataSettings(source="devices"))


def mistakes_of(make: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make()
    return [f"{mistake.key}: {mistake.message}" for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: without("server-data"), ["server-data: expected the server's own examples"]),
        (
            lambda: without("partition", partition={"kind": "dirichlet", "alpha": 1.0}),
            ["partition.kind: expected 'devices'"],
        ),
        (
            lambda: build(data={"source": "digits"}),
            ["server-data: has no effect", "partition.kind: 'devices'"],
        ),
        (lambda: build(**{"data.splits": {"test": 0.1}}), ["data.splits: has no effect with data.source"]),
        (lambda: build(**{"data.limit": 10}), ["data.limit: has no effect with data.source"]),
        (lambda: build(**{"data.shape": [1, 8]}), ["data.shape: "]),
        (lambda: build(**{"rounds.horizon": "auto"}), ["rounds.horizon: expected a number"]),
        (
            lambda: build(**{"server-data.source": "devices"}),
            ["server-data.source: expected a source that the"],
        ),
        (
            lambda: build(**{"server-data.splits": {"test": 0.9}}),
            ["server-data.splits: expected shares of at m"],
        ),
        (
            lambda: build(**{"server-data.splits": {"evaluation": 0}}),
            ["server-data.splits.evaluation: expected"],
        ),
        (
            lambda: build(**{"server-data.columns": {"label": "x"}}),
            ["server-data.columns: goes with parquet:"],
        ),
        (lambda: build(**{"server-data.source": "diabetes"}), ["server-data.source: expected 'regression'"]),
        (lambda: build(**{"server.quorum": 4}), ["server.quorum: expected from 1 (server.minimum) to the 3"]),
        (lambda: build(**{"server.minimum": 2, "server.quorum": 1}), ["server.quorum: expected from 2"]),
        (
            lambda: build(**{"server.sampled": 2, "server.enough": 3}),
            ["server.enough: expected from 1 (server.minimum) to the 2 participants sampled, got 3"],
        ),
        (lambda: build(**{"server.grace": 5}), ["server.grace: has no effect without quorum and enough"]),
        (
            lambda: build(arms={"cold": {"data": {"source": "digits"}}}),
            ["arms.cold.data: arms share it"],
        ),
        (
            lambda: build(arms={"cold": {"server-data": {"source": "digits"}}}),
            ["arms.cold.server-data: arms share it"],
        ),
    ],
)
def test_what_does_not_go_together_is_told(make: Any, told: list[str]) -> None:
    found = mistakes_of(make)
    for text in told:
        assert any(line.startswith(text) for line in found), found


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes_of(
        lambda: without(
            "server-data",
            "partition",
            **{
                "data.classes": None,
                "data.splits": {"test": 0.2},
                "partition": {"kind": "uniform", "participants": 4},
                "rounds.horizon": "auto",
            },
        )
    )
    keys = {line.partition(":")[0] for line in found}
    assert keys >= {"server-data", "partition.kind", "data.classes", "data.splits", "rounds.horizon"}


@pytest.mark.parametrize("key", ["quorum", "enough", "grace"])
def test_a_simulation_has_no_use_for_settings_of_devices(key: str, tiny: Any) -> None:
    found = mistakes_of(lambda: tiny(**{f"server.{key}": 2}))
    assert any(re.match(rf"server.{key}: has no effect with data.source 'digits'", line) for line in found)


def test_a_fault_of_the_servers_data_is_told_with_its_key() -> None:
    (mistake,) = check_data(build(**{"server-data.source": "npz:/nowhere.npz"}))
    assert mistake.key == "server-data.source"
    (mistake,) = check_data(build(**{"server-data.limit": 4}))
    assert mistake.key == "server-data.splits"
    (mistake,) = check_data(build(**{"data.shape": [64]}))
    assert mistake.key == "data.shape"
