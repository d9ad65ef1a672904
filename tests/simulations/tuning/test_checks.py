"""Mistakes of a search, all at once, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kdfed.config.document import dump
from kdfed.errors import ConfigError
from simulations.experiments import examine_experiment, merge
from simulations.tuning import load_tuning
from tests.conftest import TINY

SPACES: dict[str, Any] = {"cold": {"local.lr": [0.05, 0.2]}, "consolidated": {"consolidation.lr": [0.05]}}


def written(folder: Path, tuning: Mapping[str, Any] | None, **changes: Any) -> Path:
    """Write the tiny experiment with a section ``tuning``."""
    values = merge(TINY, {key.replace("__", "."): value for key, value in changes.items()})
    file = folder / "experiment.yaml"
    file.write_text(dump(values if tuning is None else {**values, "tuning": tuning}))
    return file


def mistakes(folder: Path, tuning: Mapping[str, Any] | None, *words: str, **changes: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_tuning(written(folder, tuning, **changes), words)
    return {mistake.key: mistake.message for mistake in caught.value.mistakes}


def test_values_and_keys_that_an_arm_refuses_are_said_together(tmp_path):
    spaces = {
        "cold": {
            "local.lrr": [0.1, 0.2],
            "local.lr": [0.1, -1.0],
            "server": [{"strategy": "fedavgg"}],
            "data.limit": [100],
        },
        "consolidated": {"consolidation.temperature": [1.0, "warm"]},
    }
    found = mistakes(tmp_path, {"arms": spaces})
    assert set(found) == {
        "tuning.arms.cold.local.lrr",
        "tuning.arms.cold.local.lr.1",
        "tuning.arms.cold.server",
        "tuning.arms.cold.data.limit",
        "tuning.arms.consolidated.consolidation.temperature.1",
    }
    assert "did you mean 'lr'?" in found["tuning.arms.cold.local.lrr"]
    assert "above 0" in found["tuning.arms.cold.local.lr.1"]
    assert "did you mean 'fedavg" in found["tuning.arms.cold.server"]


def test_the_section_itself_is_checked(tmp_path):
    tuning = {
        "arms": {"consolidated": {"server.strategy": ["fedavgm"]}, "colt": {"local.lr": [0.1]}},
        "by-hand": {"warm": 3},
        "examples": 0.9,
    }
    found = mistakes(tmp_path, tuning)
    assert "did you mean 'cold'?" in found["tuning.arms.colt"]
    assert "an arm that is tuned" in found["tuning.by-hand.warm"]
    assert "the baseline 'cold'" in found["tuning.arms"]
    assert "keeps the server of the tuned baseline" in found["tuning.arms.consolidated.server.strategy"]
    assert "leaves examples for participants" in found["tuning.examples"]


def test_wrong_names_do_not_hide_wrong_values(tmp_path):
    found = mistakes(tmp_path, {"arms": {"colt": {"local.lr": [0.1]}, "cold": {"local.lr": [0.1, -1.0]}}})
    assert set(found) == {"tuning.arms.colt", "tuning.arms.cold.local.lr.1"}


def test_an_arm_with_a_warm_start_may_search_a_rate_of_its_own(tmp_path):
    spaces = {"cold": {"local.lr": [0.05, 0.2]}, "consolidated": {"local.lr": [0.01, 0.05]}}
    plan = load_tuning(written(tmp_path, {"arms": spaces}))
    assert plan.tuning.arms["consolidated"] == {"local.lr": (0.01, 0.05)}


@pytest.mark.parametrize(
    ("tuning", "key"),
    [
        (None, "tuning"),
        ({"arms": SPACES, "rungs": [9, 3]}, "tuning.rungs"),
        ({"arms": SPACES, "keep": 1.0}, "tuning.keep"),
        ({"arms": {"cold": {"local.lr": 0.1}}}, "tuning.arms.cold.local.lr"),
        ({"arms": SPACES, "by-hand": {"consolidated": 3}}, "tuning.arms.cold"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, tuning, key):
    assert list(mistakes(tmp_path, tuning)) == [key]


def test_tuning_seeds_are_never_those_of_the_experiment_nor_of_the_command_line(tmp_path):
    tuning = {"arms": SPACES, "seeds": [3, 100]}
    assert "got 3 in both" in mistakes(tmp_path, tuning)["tuning.seeds"]
    file = written(tmp_path, {"arms": SPACES, "seeds": [100]})
    assert examine_experiment(file)[1] == []
    (mistake,) = examine_experiment(file, (), ["100"])[1]
    assert mistake.key == "tuning.seeds"


def test_keys_may_be_nested_and_overridden(tmp_path):
    file = written(tmp_path, {"arms": {"cold": {"local": {"lr": [0.05, 0.2]}}}, "trials": 3})
    plan = load_tuning(file, ["tuning.arms.cold.local.epochs=[1, 2]", "tuning.trials=4"])
    assert plan.tuning.arms["cold"] == {"local.lr": (0.05, 0.2), "local.epochs": (1, 2)}
    assert plan.tuning.trials == 4


def test_an_experiment_of_devices_is_refused(tmp_path):
    file = tmp_path / "experiment.yaml"
    values = {
        "name": "rooms",
        "data": {"source": "devices", "classes": ["a", "b"], "shape": [4]},
        "partition": {"kind": "devices", "participants": 2},
        "server-data": {"source": "synthetic:features=4"},
        "targets": [0.8],
        "arms": {"cold": {"start": "random"}},
        "tuning": {"arms": {"cold": {"local.lr": [0.05, 0.2]}}},
    }
    file.write_text(dump(values))
    with pytest.raises(ConfigError, match="`flwr run` on a SuperLink") as caught:
        load_tuning(file)
    assert [mistake.key for mistake in caught.value.mistakes] == ["data.source"]
