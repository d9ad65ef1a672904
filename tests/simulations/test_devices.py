"""An experiment on devices, each with data of its own, beside a simulation of the same participants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from kdfed.errors import ConfigError, RunError
from kdfed.messages import COHORTS, CONFIG, DEVICE_DATA, versions
from kdfed.records import RunFolder
from simulations.engines import flower, inprocess, ray
from simulations.engines.inprocess import InProcessGrid
from simulations.server_app import run_experiment
from tests.devices import (
    MEAN,
    OWNERS,
    STD,
    DeviceGrid,
    Seen,
    Withheld,
    client_app,
    held,
    node_configs,
    on_devices,
    simulated,
)


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.report.build_report", lambda folder: None)


def records(grid: Any, experiment: Any, out: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run, and return the lines of ``rounds.jsonl`` and each arm's hash of the weights."""
    folder = RunFolder.open_for(out, experiment)
    run_experiment(grid, experiment, folder, "flower")
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    hashes = {outcome.arm: outcome.weights_sha256 for outcome in folder.read_outcomes()}
    return rows, hashes


def test_devices_with_classes_of_their_own_give_the_bits_of_the_simulation(tmp_path: Path) -> None:
    """Three devices share no digit: a folder of images, arrays, a function; two arms.

    All fields but seconds and bytes are equal. Bytes differ by what a device must be told, and by what it
    tells at hello: both are counted here.
    """
    grid = DeviceGrid(node_configs(tmp_path / "data"))
    found, hashes = records(grid, on_devices(), tmp_path / "devices")
    wanted, wanted_hashes = records(InProcessGrid(client_app, 2), simulated(), tmp_path / "simulated")
    assert hashes == wanted_hashes
    assert len(set(hashes.values())) == 2
    assert len(found) == len(wanted) == 2 * 3
    for mine, theirs in zip(found, wanted, strict=True):
        for row in (mine, theirs):
            del row["seconds"]
        assert _without_bytes(mine) == _without_bytes(theirs)
    ends = (2, 5)
    down, up = (sum(found[end][key] for end in ends) for key in ("bytes_down", "bytes_up"))
    assert down == sum(_counted(seen.down) for seen in grid.seen)
    assert up == sum(_counted(seen.up) for seen in grid.seen if seen.up is not None)
    told = [seen for seen in grid.seen if seen.type != "query.hello"]
    assert len(told) == 3 * (2 + 1 + 2)
    hello = 2 * 3 * ConfigRecord({"versions": json.dumps(versions())}).count_bytes()
    plain = hello + sum(_counted(seen.down) - _told(seen.down) for seen in told)
    assert plain == sum(wanted[end]["bytes_down"] for end in ends)
    hello += 2 * 3 * MetricRecord({"num-examples": 1}).count_bytes()
    answers = sum(_counted(seen.up) for seen in told if seen.up is not None)
    assert hello + answers == sum(wanted[end]["bytes_up"] for end in ends)


TRAINING = {"epochs": 1, "batch-size": 8, "lr": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    [
        {"local": {"mode": "mutual", **TRAINING}},
        {"server": {"strategy": "scaffold", "cohort-size": 1}},
        {"server": {"strategy": "ds_fl", "digest": TRAINING, "distillation": TRAINING, "cohort-size": 1}},
        {"start": "consolidated", "teachers": {"upload": "logits"}},
        {"closed-form": {"head": "ridge", "at": [0]}},
    ],
    ids=["mutual", "scaffold", "ds_fl", "logits", "ridge"],
)
def test_whatever_devices_keep_and_send_gives_the_bits_of_the_simulation(
    arm: dict[str, Any], tmp_path: Path
) -> None:
    """Personal models, control variates, logits on public examples, teachers' logits, statistics."""
    changes = {"arms": {"one": {"start": "random", **arm}}}
    grid = DeviceGrid(node_configs(tmp_path / "data"))
    found, hashes = records(grid, on_devices(**changes), tmp_path / "devices")
    wanted, wanted_hashes = records(
        InProcessGrid(client_app, 2), simulated(**changes), tmp_path / "simulated"
    )
    assert hashes == wanted_hashes
    for mine, theirs in zip(found, wanted, strict=True):
        del mine["seconds"], theirs["seconds"]
        assert _without_bytes(mine) == _without_bytes(theirs)
        assert mine["absent"] == []


def test_weights_that_are_not_trained_are_counted_as_often_as_a_device_is_sent_them(tmp_path: Path) -> None:
    arm = {"cold": {"start": "random", "local.trainable": "head"}}
    grid = DeviceGrid(node_configs(tmp_path / "data"))
    found, _ = records(grid, on_devices(arms=arm), tmp_path / "devices")
    assert all("fixed" in seen.down for seen in grid.seen if seen.type == "train")
    assert found[-1]["bytes_down"] == sum(_counted(seen.down) for seen in grid.seen)


# ----------------------------------------------------------------------------- what messages hold

WEIGHTS = {"1.weight", "1.bias", "3.weight", "3.bias"}
SAYS = {
    "query.hello": {"num-examples", "memory", "participant", "shape", "versions", "device"},
    "train.teacher": {"num-examples", "train-loss", "local-steps"},
    "train": {"num-examples", "train-loss", "local-steps"},
}
"""All that a device says beside weights, by message."""


def problem_with_messages(seen: list[Seen]) -> str | None:
    """Say which message holds an example of a device, or anything else that nobody asked for."""
    rows = []
    for name in OWNERS:
        inputs, _ = held(name)
        normalised = (inputs.astype(np.float32) / 255 - MEAN) / STD
        rows += [row.tobytes() for form in (inputs, inputs.astype(np.float32), normalised) for row in form]
    for one in seen:
        for way, content in (("down", one.down), ("up", one.up)):
            for key, record in (content or {}).items():
                if isinstance(record, ArrayRecord):
                    if way == "up" and set(record) != WEIGHTS:
                        return f"{one.type} {way}: {sorted(record)}"
                    if any(row in array.data for array in record.values() for row in rows):
                        return f"{one.type} {way}: an example in {key}"
                elif way == "up" and key != COHORTS and set(record) - SAYS[one.type]:
                    return f"{one.type} {way}: {sorted(set(record) - SAYS[one.type])}"
    return None


def test_no_message_of_a_run_holds_an_example_or_counts_of_labels(tmp_path: Path) -> None:
    """Every message both ways: beside weights a device says numbers that are named here, and no list."""
    grid = DeviceGrid(node_configs(tmp_path / "data"))
    records(grid, on_devices(), tmp_path / "devices")
    assert len(grid.seen) == 2 * 3 + 3 * (2 + 1 + 2)
    assert problem_with_messages(grid.seen) is None
    for one in grid.seen:
        assert one.up is not None
        lists = [value for value in one.up["metrics"].values() if isinstance(value, list)]
        assert lists == []


def test_a_message_with_an_example_or_with_counts_is_found(tmp_path: Path) -> None:
    """Else the test before would say nothing."""
    (image, *_), _ = held("north")
    weights = {key: torch.zeros(64) for key in WEIGHTS}
    good = RecordDict({"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": 3})})
    for smuggled in (image.ravel(), image.ravel().astype(np.float32)):
        bad = RecordDict(
            {
                **good,
                "arrays": ArrayRecord({**weights, "1.bias": torch.from_numpy(np.r_[smuggled, smuggled])}),
            }
        )
        told = problem_with_messages([Seen(1, "train", RecordDict(), bad)])
        assert told == "train up: an example in arrays"
    assert problem_with_messages([Seen(1, "train", RecordDict(), good)]) is None
    counts = RecordDict({**good, "metrics": MetricRecord({"label-counts": [1, 2]})})
    assert problem_with_messages([Seen(1, "train.teacher", RecordDict(), counts)]) == (
        "train.teacher up: ['label-counts']"
    )


ASKS_FOR_COUNTS = {
    "arms": {"consolidated": {"start": "consolidated"}},
    "consolidation.ensemble": "label-counts",
    "teachers.label-counts.send": True,
    "rounds.horizon": 0,
}


def counts_of(seen: list[Seen]) -> dict[int, list[float]]:
    return {
        one.node: [float(count) for count in one.up["metrics"]["label-counts"]]
        for one in seen
        if one.type == "train.teacher" and one.up is not None
    }


def test_counts_of_labels_are_sent_when_they_are_asked_for(tmp_path: Path) -> None:
    grid = DeviceGrid(node_configs(tmp_path / "data"))
    records(grid, on_devices(**ASKS_FOR_COUNTS), tmp_path / "devices")
    _, labels = held("south")
    assert counts_of(grid.seen)[31] == np.bincount(labels, minlength=10).tolist()


def test_noise_on_counts_is_the_devices_own(tmp_path: Path) -> None:
    """The server knows the seed: noise that it could draw again would hide nothing."""
    drawn = []
    for run in range(2):
        grid = DeviceGrid(node_configs(tmp_path / "data"))
        experiment = on_devices(**ASKS_FOR_COUNTS, **{"teachers.label-counts.epsilon": 1.0})
        records(grid, experiment, tmp_path / f"devices-{run}")
        drawn.append(counts_of(grid.seen))
    assert set(drawn[0]) == {12, 20, 31}
    for node, counts in drawn[0].items():
        assert counts != drawn[1][node]


# ----------------------------------------------------------------------------- who is there


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def roster_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "roster.json").read_text())
    return found


def test_a_quorum_starts_and_who_comes_later_takes_part(tmp_path: Path) -> None:
    """South connects while round 1 is trained; until then its slot is empty, with a reason."""
    configs = node_configs(tmp_path / "data")
    late = configs.pop(31)

    def come(node: int, kind: str, reply: Message) -> Message:
        if kind == "train" and 31 not in grid.get_node_ids():
            grid.connect(31, late)
        return reply

    grid = DeviceGrid(configs, change=come)
    changes = {"server.quorum": 2, "server.grace": 0.1, "arms": {"cold": {"start": "random"}}}
    records(grid, on_devices(**changes), tmp_path / "run")
    start, first, second = rows_of(tmp_path / "run")
    assert (start["answered"], first["answered"], second["answered"]) == (0, 2, 3)
    assert first["absent"] == [{"participant": 2, "reason": "no device of this number has come yet"}]
    assert second["absent"] == []
    people = roster_of(tmp_path / "run")["participants"]
    assert [(one["name"], one["number"], one["node"]) for one in people] == [
        ("east", 0, "12"),
        ("north", 1, "20"),
        ("south", 2, "31"),
    ]


def test_a_device_that_has_left_is_named_and_costs_no_bytes(tmp_path: Path) -> None:
    """South leaves once round 1 has ended, and comes back while round 3 is trained."""
    configs, trained = node_configs(tmp_path / "data"), list[int]()

    def go_and_come(node: int, kind: str, reply: Message) -> Message:
        if kind == "train":
            trained.append(node)
            if len(trained) == 3:
                grid.leave(31)
            elif len(trained) == 6:
                grid.connect(31, configs[31])
        return reply

    grid = DeviceGrid(configs, change=go_and_come)
    changes = {"rounds.horizon": 5, "arms": {"cold": {"start": "random"}}}
    records(grid, on_devices(**changes), tmp_path / "run")
    _, *rows = rows_of(tmp_path / "run")
    assert [row["answered"] for row in rows] == [3, 2, 2, 3, 3]
    left = [{"participant": 2, "reason": "south has left: its node 31 is offline"}]
    assert [row["absent"] for row in rows] == [[], left, left, [], []]
    assert rows[-1]["bytes_down"] == sum(_counted(seen.down) for seen in grid.seen)
    assert rows[-1]["bytes_up"] == sum(_counted(seen.up) for seen in grid.seen if seen.up is not None)


def test_a_device_of_a_class_that_nobody_knows_is_refused_and_named(tmp_path: Path, caplog) -> None:
    configs = node_configs(tmp_path / "data")
    (tmp_path / "data/south/eleven").mkdir()
    changes = {"server.quorum": 2, "server.grace": 0.1, "arms": {"cold": {"start": "random"}}}
    records(DeviceGrid(configs), on_devices(**changes), tmp_path / "run")
    assert [row["answered"] for row in rows_of(tmp_path / "run")] == [0, 2, 2]
    (refused,) = roster_of(tmp_path / "run")["refused"]
    assert (refused["node"], refused["name"]) == ("31", "south")
    said = "no device of this number has come yet; refused: south (roster.json says why)"
    assert [one["reason"] for one in rows_of(tmp_path / "run")[1]["absent"]] == [said]
    for text in (refused["reason"], *[line for line in caplog.messages if "'south'" in line]):
        assert "participant 'south': its data: " in text
        assert "holds the classes ['eleven']" in text  # what follows is cut where the path is long


def test_everybodys_mistake_ends_a_run_before_any_exchange(tmp_path: Path) -> None:
    configs = {
        node: {**config, "data": "npz:/nowhere.npz"} for node, config in node_configs(tmp_path).items()
    }
    grid = DeviceGrid(configs)
    experiment = on_devices(
        arms={"cold": {"start": "random"}}, server={"deadlines": {"hello": 1.0}, "cohort-size": 1}
    )
    with pytest.raises(RunError, match=r"expected all 3 devices .*/nowhere.npz, which does not exist"):
        records(grid, experiment, tmp_path / "run")
    assert {seen.type for seen in grid.seen} == {"query.hello"}
    assert not (tmp_path / "run/rounds.jsonl").exists()
    assert [one["name"] for one in roster_of(tmp_path / "run")["refused"]] == ["east", "north", "south"]


def test_a_round_ends_once_enough_have_answered(tmp_path: Path) -> None:
    """South answers round 1 when round 2 has begun: late, and busy until then."""
    withheld = Withheld({31})
    released = []

    def change(node: int, kind: str, reply: Message) -> Message | None:
        if kind == "train" and node != 31:
            released.append(node)
        if len(released) > 2:  # of round 2
            withheld.nodes.clear()
        return withheld(node, kind, reply)

    grid = DeviceGrid(node_configs(tmp_path / "data"), change=change)
    changes = {
        "server.enough": 2,
        "server.grace": 0.2,
        "rounds.horizon": 3,
        "arms": {"cold": {"start": "random"}},
    }
    records(grid, on_devices(**changes), tmp_path / "run")
    _, first, second, third = rows_of(tmp_path / "run")
    assert (first["answered"], second["answered"], third["answered"]) == (2, 2, 3)
    (why,) = first["absent"]
    assert why == {
        "participant": 2,
        "reason": "no reply within 0.2 seconds of the first 2 (server.enough)",
    }
    assert [one["reason"] for one in second["absent"]] == ["busy: has not answered round 1 yet"]
    assert [one["reason"] for one in third["absent"]] == ["late: reply to round 1, not used"]
    assert first["seconds"] < 60, "the deadline is an hour"


def test_a_simulation_that_devices_are_given_to_is_refused_before_any_exchange(tmp_path: Path) -> None:
    experiment = on_devices(**{"server.deadlines.hello": 1.0, "arms": {"cold": {"start": "random"}}})
    for engine in (inprocess, flower, ray):
        with pytest.raises(ConfigError, match=r"(?s)data.source: .*'devices'.*`flwr run`"):
            engine.check(experiment, nodes=2)
    grid = InProcessGrid(client_app, 2)
    with pytest.raises(RunError, match="needs SuperNodes whose node-config names a participant and its data"):
        records(grid, experiment, tmp_path / "run")


def _without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("bytes_")}


def _counted(content: RecordDict) -> int:
    """Return the bytes of a message's records; who it is for and who answered count nothing."""
    return sum(record.count_bytes() for key, record in content.items() if key != COHORTS)


def _told(content: RecordDict) -> int:
    """Return the bytes of what a device is told beside what a strategy sends."""
    return ConfigRecord({DEVICE_DATA: content[CONFIG][DEVICE_DATA]}).count_bytes()
