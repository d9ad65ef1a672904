"""Controls are ordinary arms, made of the arms that they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdfed.config import Experiment, read_recorded, with_horizon
from kdfed.errors import ConfigError
from simulations.experiments import build_experiment, load_experiment

EXPERIMENT: dict[str, Any] = {
    "name": "controlled",
    "partition": {"kind": "uniform", "participants": 20},
    "local": {"mode": "plain", "epochs": 1, "batch-size": 10, "lr": 0.05},
    "teachers": {"epochs": 10, "batch-size": 10},
    "rounds": {"horizon": 40},
    "baseline": "cold",
    "controls": ["averaged", "longer"],
    "arms": {
        "warm": {"start": "consolidated"},
        "cold": {"start": "random", "local": {"lr": 0.1}, "server.strategy": "fedadam"},
    },
}


def controlled(**changes: Any) -> Experiment:
    return build_experiment({**EXPERIMENT, **changes})


def mistakes(**changes: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        controlled(**changes)
    return {mistake.key: mistake.message for mistake in caught.value.mistakes}


def test_there_are_none_unless_they_are_asked_for() -> None:
    experiment = controlled(controls=[])
    assert experiment.controls == ()
    assert set(experiment.arms) == {"cold", "warm"}


def test_they_are_arms_behind_the_others() -> None:
    experiment = controlled()
    assert experiment.controls == ("averaged", "longer")
    assert experiment.arm_order == ("cold", "warm", "averaged", "longer")


@pytest.mark.parametrize("name", ["averaged", "server"])
def test_another_start_differs_from_the_taught_arm_in_its_start_alone(name: Any) -> None:
    warm = {
        "start": "consolidated",
        "teachers": {"epochs": 7},
        "local": {"lr": 0.01},
        "server.strategy": "fedadam",
    }
    arms = {"cold": {"start": "random", "local": {"lr": 0.1}}, "warm": warm}
    experiment = controlled(arms=arms, controls=[name])
    control, taught = experiment.arm(name), experiment.arm("warm")
    assert control.start == name
    for section in ("model", "local", "server", "partition", "rounds"):
        assert getattr(control, section) == getattr(taught, section)
    assert control.local.lr == 0.01
    assert control.server.strategy == "fedadam"
    if name == "averaged":
        assert control.teachers == taught.teachers


@pytest.mark.parametrize(
    ("at", "averaged", "server"),
    [
        ([0], (0,), None),
        (["before-teachers", 3], ("before-teachers", 3), (3,)),
        (["before-teachers"], ("before-teachers",), None),
    ],
)
def test_heads_in_closed_form_are_those_of_the_arm_as_far_as_a_start_can_have_them(
    at: Any, averaged: Any, server: Any
) -> None:
    """The server's own model is a start before any exchange; nobody but it has no teachers to start."""
    teacher = {"teacher": True} if "before-teachers" in at else {}
    warm = {"start": "consolidated", "closed-form": {"head": "lda", "at": at, **teacher}}
    experiment = controlled(
        arms={"cold": {"start": "random"}, "warm": warm}, controls=["averaged", "server", "longer"]
    )
    for name, wanted in (("averaged", averaged), ("server", server), ("longer", None)):
        found = experiment.arm(name).closed_form
        assert (None if found is None else found.at) == wanted
        assert found is None or (found.head.head, found.teacher) == ("lda", False)
    assert build_experiment(yaml.safe_load(experiment.to_yaml())) == experiment


def test_longer_has_the_heads_of_the_baseline() -> None:
    arms = {"cold": {"start": "random", "closed-form": {"at": [0, 2]}}, "warm": {"start": "consolidated"}}
    experiment = controlled(arms=arms, controls=["averaged", "longer"])
    assert experiment.arm("longer").closed_form == experiment.arm("cold").closed_form
    assert experiment.arm("averaged").closed_form is None


def test_averaged_files_start_with_no_head() -> None:
    warm = {
        "start": "consolidated",
        "teachers": {"from": ["a.pt"]},
        "closed-form": {"at": ["before-teachers"]},
    }
    experiment = controlled(
        arms={"cold": {"start": "random"}, "warm": warm}, teachers={}, controls=["averaged"]
    )
    assert experiment.arm("averaged").closed_form is None


def test_without_teachers_the_servers_own_model_is_trained_on_like_the_baseline() -> None:
    experiment = controlled(arms={"cold": EXPERIMENT["arms"]["cold"]}, controls=["server"])
    assert experiment.arm("server").local == experiment.arm("cold").local


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        # 20 teachers make 10 passes each, 200 in all; a round of 20 makes 20 more with one pass each.
        ({}, (1, 10)),
        # A round of 5 makes 5 more with one pass each.
        ({"server": {"sampled": 5}}, (1, 40)),
        # With 10 rounds of 5, 50 passes fit with one each, so it takes 4 in 10 rounds.
        ({"server": {"sampled": 5}, "rounds": {"horizon": 10}}, (4, 10)),
        # 200 passes of batches of 20 have as many steps as 100 of batches of 10.
        ({"teachers": {"epochs": 10, "batch-size": 20}}, (1, 5)),
        # Four teachers alone: 40 passes, two rounds of 20.
        ({"teachers": {"epochs": 10, "batch-size": 10, "count": 4}}, (1, 2)),
        # One pass of one teacher is still something.
        ({"teachers": {"epochs": 1, "batch-size": 10, "count": 1}}, (1, 1)),
        ({"rounds": {"horizon": "auto"}}, (1, 10)),
    ],
)
def test_the_longer_one_makes_as_many_local_steps_more_as_the_teachers(
    changes: dict[str, Any], extra: tuple[int, int]
) -> None:
    experiment = controlled(**changes)
    longer, cold = experiment.arm("longer"), experiment.arm("cold")
    assert longer.start == "random"
    assert (longer.local.extra.epochs, longer.local.extra.rounds) == extra
    assert longer.local.model_copy(update={"extra": cold.local.extra}) == cold.local
    assert longer.server == cold.server


@pytest.mark.parametrize("rounds", [10, 60])
def test_a_horizon_that_was_found_leaves_the_longer_one_all_its_passes(rounds: int) -> None:
    """With 5 of 20 participants a round, one pass more each takes 40 rounds, which 10 do not have."""
    server = {"server": {"sampled": 5}}
    known = controlled(**server, rounds={"horizon": rounds})
    found = with_horizon(controlled(**server, rounds={"horizon": "auto"}), rounds, "found")
    assert found.arm("longer").local == known.arm("longer").local
    assert found.horizon == rounds


def test_a_horizon_that_was_found_leaves_the_users_arms_alone() -> None:
    arms = {**EXPERIMENT["arms"], "longer": {"local.extra": {"epochs": 1, "rounds": 40}}}
    mine = controlled(arms=arms, rounds={"horizon": "auto"})
    assert with_horizon(mine, 10, "found").arms == mine.arms
    del arms["warm"]
    untaught = controlled(arms=arms, controls=["longer"], rounds={"horizon": "auto"})
    assert with_horizon(untaught, 10, "found").arms == untaught.arms


def test_the_first_rounds_of_the_longer_one_take_the_extra_passes_and_later_ones_none() -> None:
    local = controlled().arm("longer").local
    assert [local.at_round(number).epochs for number in (1, 10, 11, 40)] == [2, 2, 1, 1]


def test_an_arm_of_the_users_under_that_name_stays_as_it_is() -> None:
    arms = {**EXPERIMENT["arms"], "averaged": {"start": "averaged", "local": {"lr": 0.7}}}
    experiment = controlled(arms=arms)
    assert experiment.arm("averaged").local.lr == 0.7
    assert experiment.controls == ("averaged", "longer")


@pytest.mark.parametrize(
    ("name", "arm", "key", "message"),
    [
        ("server", {"start": "random"}, "arms.server.start", "expected 'server', got 'random'"),
        ("averaged", {"start": "consolidated"}, "arms.averaged.start", "expected 'averaged', got 'conso"),
        ("longer", {"start": "consolidated"}, "arms.longer.start", "expected 'random', got 'consolidated'"),
        ("longer", {"local": {"epochs": 2}}, "arms.longer.local.extra", "expected the epochs and rounds"),
    ],
)
def test_an_arm_that_only_bears_the_name_of_a_control_is_refused(
    name: str, arm: dict[str, Any], key: str, message: str
) -> None:
    """It would stand in the tables as what the control is, and without a verdict."""
    found = mistakes(arms={**EXPERIMENT["arms"], name: arm}, controls=[name])
    assert list(found) == [key]
    assert message in found[key]
    assert "rename it" in found[key]
    assert controlled(arms={**EXPERIMENT["arms"], name: arm}, controls=[]).arm_order[-1] == name


def test_the_baseline_is_no_control() -> None:
    arms = {**EXPERIMENT["arms"], "server": {"start": "server"}}
    assert list(mistakes(arms=arms, controls=["server"], baseline="server")) == ["baseline"]


def test_an_experiment_with_controls_reads_back_equal(tmp_path: Path) -> None:
    experiment = controlled()
    written = yaml.safe_load(experiment.to_yaml())
    assert written["controls"] == ["averaged", "longer"]
    assert list(written["arms"]) == ["warm", "cold", "averaged", "longer"]
    record = tmp_path / "experiment.yaml"
    record.write_text(experiment.to_yaml())
    for again in (build_experiment(written), load_experiment(record), read_recorded(record)):
        assert again == experiment
        assert again.arm("longer").local.model_dump() == experiment.arm("longer").local.model_dump()


@pytest.mark.parametrize("name", ["averaged", "longer"])
def test_without_teachers_there_is_no_control_of_them(name: str) -> None:
    arms = {"cold": {"start": "random"}, "other": {"start": "random"}}
    found = mistakes(arms=arms, baseline="cold", controls=[name])
    wanted = f"expected an arm with start: consolidated, whose teachers {name!r} is about, got none"
    assert found == {"controls.0": f"{wanted}; remove it"}


def test_averaged_teachers_send_weights_of_the_federated_model_and_no_label_counts() -> None:
    """Whatever an ensemble asks of the teachers, weights of one architecture are what can be averaged."""
    other = {"name": "mlp", "options": {"hidden": [8]}}
    sent = {"upload": "logits", "model": other, "label-counts": {"send": True}, "epochs": 7}
    consolidation = {"ensemble": "label-counts"}
    averaged = controlled(teachers=sent, consolidation=consolidation).arm("averaged")
    assert (averaged.teachers.upload, averaged.teachers.model) == ("weights", None)
    assert not averaged.teachers.label_counts.send
    assert averaged.teachers.epochs == 7


def test_the_server_needs_no_teachers() -> None:
    """It differs from the baseline in its start alone."""
    arms = {"cold": {"start": "random", "local": {"lr": 0.2}}}
    experiment = controlled(arms=arms, controls=["server"])
    server, cold = experiment.arm("server"), experiment.arm("cold")
    assert experiment.arm_order == ("cold", "server")
    assert server.start == "server"
    assert server.model_copy(update={"start": cold.start}) == cold
    assert build_experiment(yaml.safe_load(experiment.to_yaml())) == experiment


def test_all_three_stand_behind_the_arms_in_the_order_in_which_they_are_named() -> None:
    experiment = controlled(controls=["longer", "server", "averaged"])
    assert experiment.arm_order == ("cold", "warm", "longer", "server", "averaged")


def test_an_unknown_control_is_named() -> None:
    found = mistakes(controls=["averagd"])
    assert list(found) == ["controls.0"]
    assert "did you mean 'averaged'?" in found["controls.0"]


def test_other_mistakes_are_told_with_those_of_controls() -> None:
    found = mistakes(arms={"cold": {"start": "random", "local": {"lr": -1}}}, controls=["longer"])
    assert {"arms.cold.local.lr", "controls.0"} <= set(found)


def test_an_override_of_an_arm_reaches_its_controls(tmp_path: Path) -> None:
    """Keys are taken over after they were replaced."""
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT))
    experiment = load_experiment(file, ["arms.cold.local.lr=0.3", "arms.warm.local.lr=0.2"])
    assert {experiment.arm(name).local.lr for name in ("cold", "longer")} == {0.3}
    assert {experiment.arm(name).local.lr for name in ("warm", "averaged")} == {0.2}
